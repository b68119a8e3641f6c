#!/usr/bin/env bash
# Ask a served model with curl.
#
#   examples/http/ask.sh http://127.0.0.1:8000 assistant
#
# Takes the endpoint (without /v1) and the model's name; the key, where one is needed, from TANDEM_API_KEY. Prints the models, a chat answer, a completion,
# and a streamed completion whose chunks end with "data: [DONE]".
set -euo pipefail
base_url=${1:?usage: ask.sh BASE_URL MODEL, such as http://127.0.0.1:8000 assistant}
model=${2:?usage: ask.sh BASE_URL MODEL}

ask() {
  curl --silent --show-error --fail-with-body --header 'Content-Type: application/json' \
    --header "Authorization: Bearer ${TANDEM_API_KEY:-none}" "$@"
  echo
}

ask "$base_url/v1/models"
ask "$base_url/v1/chat/completions" --data '{
  "model": "'"$model"'", "max_tokens": 16, "temperature": 0,
  "messages": [{"role": "user", "content": "What does os.getcwd do?"}]}'
ask "$base_url/v1/completions" --data '{
  "model": "'"$model"'", "max_tokens": 16, "temperature": 0, "prompt": "def main():"}'
ask --no-buffer "$base_url/v1/completions" --data '{
  "model": "'"$model"'", "max_tokens": 16, "temperature": 0, "prompt": "def main():", "stream": true}'
