import pytest
import torch
from tiny_models import save_t5
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    T5EncoderModel,
    T5TokenizerFast,
)

from model.inputs import InputError
from model.text import load_text_encoder, text_encoder_digest, tokenize


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return save_t5(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def minilm():
    return load_text_encoder("minilm")


def test_minilm_has_tokens_and_meaning(minilm):
    prompts = ["", "[[text2image]] A dog on a meadow.", "A puppy in the grass.", "The stock market fell."]
    embeddings = minilm.encode(prompts)
    assert minilm.width == 384
    assert [embedding.dtype for embedding in embeddings] == [torch.float32] * 4
    assert embeddings[0].shape == (2, 384)  # [CLS] [SEP]
    _, dog, puppy, market = (embedding.mean(0) for embedding in embeddings)
    assert torch.cosine_similarity(dog, puppy, dim=0) > torch.cosine_similarity(dog, market, dim=0) + 0.2
    assert minilm.encode(["word " * 2000])[0].shape == (512, 384)


def test_embedding_does_not_depend_on_the_batch(minilm, t5):
    for encoder in (minilm, load_text_encoder(str(t5))):
        alone = encoder.encode(["a dog"])[0]
        assert torch.equal(alone, encoder.encode(["the cat the cat the cat", "a dog", ""])[1])


def test_t5_embeds_at_most_300_tokens_as_the_model_does(t5):
    encoder = load_text_encoder(str(t5))
    short, empty, long = encoder.encode(["a dog", "", "a dog " * 400])
    assert short.shape == (3, 32)  # with </s>
    assert empty.shape == (1, 32)
    assert long.shape == (300, 32)
    tokenizer = T5TokenizerFast.from_pretrained(t5 / "tokenizer")
    model = T5EncoderModel.from_pretrained(t5 / "text_encoder").eval()
    padded = tokenizer(["a dog"], padding="max_length", max_length=300, return_tensors="pt")
    with torch.no_grad():
        expected = model(**padded).last_hidden_state[0, :3]
    # The published pipeline pads to 300; its mask makes that the same numbers.
    torch.testing.assert_close(short, expected, atol=1e-5, rtol=1e-5)


def test_padding_is_stripped_from_batches(t5):
    encoder = load_text_encoder(str(t5))
    prompts = ["a dog", "the cat and the dog", ""]
    together = encoder._embed(
        tokenize(encoder.tokenizer, encoder.tokens, prompts), on_device=False
    )  # what a GPU does with a batch
    for one, alone in zip(together, encoder.encode(prompts), strict=True):
        torch.testing.assert_close(one, alone, atol=1e-5, rtol=1e-5)


def test_any_transformers_encoder_loads_from_one_folder(tmp_path):
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "dog": 3}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
    )
    BertModel(config).save_pretrained(tmp_path)
    encoder = load_text_encoder(str(tmp_path))
    assert encoder.name.startswith("BertModel ")
    assert encoder.encode(["A dog", "a " * 50])[1].shape == (12, 16)


def test_digest_covers_weights_and_tokenizer(t5, tmp_path):
    assert load_text_encoder(str(t5)).digest == text_encoder_digest(str(t5))
    assert str(t5) not in load_text_encoder(str(t5)).name
    copy = save_t5(tmp_path)
    before = text_encoder_digest(str(copy))
    assert before == text_encoder_digest(str(t5))
    tokenizer = copy / "tokenizer" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    assert text_encoder_digest(str(copy)) != before


def test_unfit_encoders_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        load_text_encoder("minilmm")
    copy = save_t5(tmp_path)
    (copy / "tokenizer").rename(copy / "tokens")
    with pytest.raises(InputError, match="no tokenizer beside"):
        load_text_encoder(str(copy))
