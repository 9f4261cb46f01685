"""Text: models with token ids as input, own ones and those of `transformers`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from onnx_release.trained.input_spec import InputSpec
from tests.zoo.entry import Entry, Exported, gives, tokens

_VOCABULARY = 100
_TINY: Any = {"num_labels": 3, "vocab_size": _VOCABULARY}


class MeanPool(nn.Module):
    """The mean of the embeddings of all tokens except padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_VOCABULARY, 16, padding_idx=0)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        kept = (tokens != 0)[:, :, None]
        pooled = (self.embedding(tokens) * kept).sum(1) / kept.sum(1).clamp(min=1)
        logits: Tensor = self.head(pooled)
        return logits


class CharCnn(nn.Module):
    """Convolutions of several widths over characters, the strongest response of each."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 8)
        self.filters = nn.ModuleList(nn.Conv1d(8, 8, width, padding="same") for width in (3, 5))
        self.head = nn.Linear(16, 2)

    def forward(self, characters: Tensor) -> Tensor:
        hidden = self.embedding(characters).transpose(1, 2)
        logits: Tensor = self.head(torch.cat([layer(hidden).amax(2) for layer in self.filters], dim=1))
        return logits


class Bag(nn.Module):
    """`nn.EmbeddingBag` over a fixed number of words."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(_VOCABULARY, 12, mode="mean")
        self.head = nn.Linear(12, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.bag(tokens))
        return logits


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes: Any = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(max_position_embeddings=64, **sizes, **_TINY))


def distilbert() -> nn.Module:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64, **_TINY)
    return DistilBertForSequenceClassification(config)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config: Any = GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=_VOCABULARY, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config)


def t5_encoder() -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=_VOCABULARY)
    return T5EncoderModel(config)


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config: Any = LlamaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        vocab_size=_VOCABULARY, max_position_embeddings=64, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


_IDS = tokens("input_ids", "batch", "length", vocabulary=_VOCABULARY)
_MASK = InputSpec(name="attention_mask", dtype="int64", shape=("batch", "length"), low=0, high=1)
_THREE = (gives("logits", "batch", 3),)
_NEXT = gives("logits", "batch", "length", _VOCABULARY)
_CACHE = tuple(
    gives(f"past_key_values.{layer}.{part}", "batch", 4, "length", 8) for layer in range(2) for part in ("key", "value")
)

ENTRIES = (
    Entry(name="mean-pool", field="text", about="embedding with a vocabulary; the length varies", make=MeanPool,
          inputs=(tokens("tokens", "batch", "length", vocabulary=_VOCABULARY),), outputs=_THREE, store="pt2",
          expected=Exported("dynamo")),
    Entry(name="char-cnn", field="text", about="compiled by torch.jit.script, a loop over modules inside", make=CharCnn,
          inputs=(tokens("characters", "batch", 24, vocabulary=64),), outputs=(gives("logits", "batch", 2),),
          finish=lambda model: torch.jit.script(model.eval()), store="script", expected=Exported("torchscript")),
    Entry(name="embedding-bag", field="text", about="embedding bag", make=Bag,
          inputs=(tokens("tokens", "batch", 6, vocabulary=_VOCABULARY),), outputs=(gives("logits", "batch", 4),),
          store="pickle", expected=Exported("dynamo")),
    Entry(name="bert", field="text", about="transformers: BERT, two inputs of one length", make=bert,
          inputs=(_IDS, _MASK), outputs=_THREE, call="by name", store="pickle", expected=Exported("dynamo")),
    Entry(name="distilbert", field="text", about="transformers: DistilBERT, its weights alone", make=distilbert,
          inputs=(_IDS, _MASK), call="by name", store="safetensors", described=True, expected=Exported("dynamo")),
    Entry(name="gpt2", field="text", about="transformers: GPT-2, logits and the attention's cache", make=gpt2,
          inputs=(_IDS,), outputs=(_NEXT, *_CACHE), call="by name", store="pickle",
          expected=Exported("dynamo-wrapped")),
    Entry(name="llama", field="text", about="transformers: Llama, grouped queries, rotary positions", make=llama,
          inputs=(_IDS,), outputs=(_NEXT,), call="by name", store="pickle", expected=Exported("dynamo")),
    Entry(name="t5-encoder", field="text", about="transformers: T5's encoder, relative positions", make=t5_encoder,
          inputs=(_IDS,), outputs=(gives("last_hidden_state", "batch", "length", 32),), call="by name",
          store="state dict", described=True, expected=Exported("dynamo")),
)  # fmt: skip
