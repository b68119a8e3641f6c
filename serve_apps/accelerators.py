"""GPU products: which one an app's replicas are on, so that they never mix them unless asked."""

from __future__ import annotations

from cluster.inventory import Inventory
from runtime.core.errors import ConfigError
from runtime.core.lookup import did_you_mean

ANY = "any"


def choices(
    wanted: str | None, *, gpus_per_replica: float, most_replicas: int, inventory: Inventory
) -> list[str | None]:
    """The products that all replicas may be on, as Ray names them: the first on which they fit is taken.

    Args:
        wanted: ``resources.accelerator_type``.
        gpus_per_replica: What each of them reserves.
        most_replicas: So many the app is meant to have in a burst; products with too few GPUs come later.
        inventory: The cluster's nodes and cards.

    Returns:
        Those with the smallest cards first, so that the larger ones stay for what needs them, but after all
        that hold a replica on one node those that do not. ``[None]`` where there is no choice to make:
        without GPUs, on logical ones, and where any will do.

    Raises:
        ConfigError: the cluster has no such product.
    """
    if gpus_per_replica == 0 or wanted == ANY:
        return [None]
    if wanted is None:

        def falls_short(product: str) -> tuple[bool, bool]:
            nodes = inventory.with_product(product)
            return (
                nodes.most_cards_on_a_node < gpus_per_replica,
                nodes.cards < gpus_per_replica * most_replicas,
            )

        return [*sorted(inventory.products, key=falls_short)] or [None]
    if wanted not in inventory.products:
        raise ConfigError(
            f"resources.accelerator_type is {wanted!r}, which the cluster does not have. "
            f"{did_you_mean(wanted, inventory.products)}"
        )
    return [wanted]
