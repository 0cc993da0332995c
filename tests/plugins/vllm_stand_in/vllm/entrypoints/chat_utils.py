"""vllm.entrypoints.chat_utils."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image


async def parse_chat_messages_async(
    messages: list[dict[str, Any]], model_config: Any, content_format: str
) -> tuple[list[dict[str, Any]], dict[str, list[Any]], Any]:
    """Messages with places for pictures, the pictures, and their ids."""
    assert content_format == "openai"
    conversation, pictures = [], []
    for message in messages:
        content = []
        for part in message["content"]:
            if part["type"] == "image_url":
                data = base64.b64decode(part["image_url"]["url"].split(",")[1])
                pictures.append(Image.open(io.BytesIO(data)).convert("RGB"))
                content.append({"type": "image"})
            else:
                content.append({"type": "text", "text": part["text"]})
        conversation.append({"role": message["role"], "content": content})
    return conversation, {"image": pictures}, None
