"""The words that DeepSpeed knows in a config: what else stands there has no effect, or is an error.

Source: deepspeed 0.19.8, runtime/config.py and runtime/constants.py (top level), runtime/zero/config.py,
runtime/zero/offload_config.py.
"""

TOP_LEVEL = frozenset(
    """
    train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps managed_gradient_accumulation
    optimizer scheduler fp16 bf16 bfloat16 amp torch_autocast gradient_clipping data_types
    zero_optimization zero_allow_untested_optimizer zero_force_ds_cpu_optimizer
    communication_data_type seq_parallel_communication_data_type prescale_gradients gradient_predivide_factor
    gradient_allreduce_op sparse_gradients sparse_attention disable_allgather disable_python_gc
    steps_per_print wall_clock_breakdown memory_breakdown dump_state timers log_level flops_profiler
    tensorboard wandb comet csv_monitor comms_logger autotuning elasticity activation_checkpointing
    data_efficiency curriculum_learning progressive_layer_drop compression_training quantize_training
    eigenvalue aio checkpoint datastates_ckpt nebula pipeline hybrid_engine compile graph_harvesting
    dataloader_drop_last vocabulary_size tensor_parallel expert_parallel sequence_parallel_size
    use_data_before_expert_parallelism weight_quantization
    """.split()  # noqa: SIM905 (more readable than sixty quoted words)
)
"""Keys of the whole config. DeepSpeed passes over any other."""

ZERO = frozenset(
    """
    stage contiguous_gradients reduce_scatter reduce_bucket_size use_multi_rank_bucket_allreduce
    allgather_partitions allgather_bucket_size overlap_comm compute_grad_norm load_from_fp32_weights
    elastic_checkpoint offload_param offload_optimizer zenflow sub_group_size cpu_offload_param
    cpu_offload_use_pin_memory cpu_offload prefetch_bucket_size param_persistence_threshold
    model_persistence_threshold max_live_parameters max_reuse_distance gather_16bit_weights_on_model_save
    module_granularity_threshold use_all_reduce_for_fetch_params allgather_sequential
    stage3_gather_fp16_weights_on_model_save ignore_unused_parameters legacy_stage1 round_robin_gradients
    parameter_alignment zero_hpz_partition_size zero_quantized_weights zero_quantized_nontrainable_weights
    zero_quantized_gradients memory_efficient_linear pipeline_loading_checkpoint override_module_apply
    log_trace_cache_warnings enable_sanity_checks save_muon_momentum_buffer_in_memory leaf_module
    stage3_prefetch_bucket_size stage3_param_persistence_threshold stage3_model_persistence_threshold
    stage3_max_live_parameters stage3_max_reuse_distance stage3_gather_16bit_weights_on_model_save
    stage3_module_granularity_threshold stage3_use_all_reduce_for_fetch_params stage3_allgather_sequential
    """.split()  # noqa: SIM905 (more readable than sixty quoted words)
)
"""Keys of ``zero_optimization``. DeepSpeed refuses any other."""

OFFLOAD_DEVICES = ("none", "cpu", "nvme")
"""Where ``offload_optimizer`` and ``offload_param`` can put things."""
