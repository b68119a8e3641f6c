"""Ask a served model with the official OpenAI client.

    python examples/http/ask.py http://127.0.0.1:8000 assistant

Takes the endpoint (without /v1) and the model's name; the key, where one is needed, from TANDEM_API_KEY.
Prints the models, then one chat answer as it streams in.
"""

import os
import sys

from openai import OpenAI


def main(base_url: str, model: str) -> None:
    # The client insists on a key; an app with `auth: none` looks at none.
    client = OpenAI(base_url=f"{base_url.rstrip('/')}/v1", api_key=os.environ.get("TANDEM_API_KEY", "none"))
    print("models:", *(served.id for served in client.models.list()))
    chunks = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What does os.getcwd do?"}],
        max_tokens=16,
        temperature=0,
        stream=True,
    )
    for chunk in chunks:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:3])
