"""Scores of language models: against the sum written out, and across tokenizers."""

import math
from typing import Any

import pytest
import torch
from language_models import TEXT, bert, byte_level, llama, unigram
from torch import Tensor, nn

from hetmerge.errors import InputError
from hetmerge.perplexity import is_causal, score
from hetmerge.windows import Windows, aligned_windows

LONG = TEXT * 4


def windows(*tokenizers: Any, length: int = 30) -> list[Windows]:
    return aligned_windows(
        LONG, tokenizers, tokens=300, sequence_length=length, batch_size=4, seed=0
    )


def rows_of(tokenizer: Any) -> int:
    return max(tokenizer.get_vocab().values()) + 1


class ByBytes(nn.Module):
    """Knows nothing but how long a token is."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        from hetmerge.tokens import tokens_of

        sizes = torch.zeros(rows_of(tokenizer))
        for (_, content), i in tokens_of(tokenizer).ids.items():
            sizes[i] = len(content)
        self.sizes = nn.Parameter(sizes)

    def forward(self, input_ids: Tensor) -> Any:
        # With a filler that takes the rest of the probability, p(token) is exp(-bytes) exactly.
        p = (-self.sizes).exp() * 1e-6
        logits = torch.cat([p, 1 - p.sum()[None]]).log().expand(*input_ids.shape, -1)
        return type("Output", (), {"logits": logits})


def test_uniform_guesses_have_the_vocabulary_as_perplexity() -> None:
    tokenizer = byte_level()
    model = llama(rows_of(tokenizer))
    with torch.no_grad():
        model.lm_head.weight.zero_()
    found = score(model, windows(tokenizer), 0)
    assert found["perplexity"] == pytest.approx(rows_of(tokenizer), rel=1e-5)


@pytest.mark.parametrize("member", [0, 1])
def test_the_sum_written_out(member: int) -> None:
    """Long windows: log-probabilities are taken in chunks of positions."""
    tokenizers = [byte_level(), unigram()]
    model = llama(rows_of(tokenizers[member]), max_position_embeddings=400)
    data = windows(*tokenizers, length=300)
    total, tokens, size = 0.0, 0, 0
    for batch in data:
        ids, at = batch.inputs[member]["input_ids"], batch.shared[member]
        for b in range(len(ids)):
            with torch.no_grad():
                logs = model(input_ids=ids[b : b + 1]).logits[0].double().log_softmax(-1)
            for i in range(int(at[b, 0]) + 1, int(at[b].max()) + 1):
                total -= float(logs[i - 1, ids[b, i]])
                tokens += 1
        size += int(batch.bytes.sum())
    found = score(model, data, member)
    assert max(len(row) for batch in data for row in batch.shared[member]) > 130
    assert found["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert found["bits per byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)


def test_bits_per_byte_do_not_depend_on_the_tokenizer() -> None:
    """Models to which every byte costs one nat, and every token one constant on top."""
    tokenizers = [byte_level(), byte_level(300)]
    data = windows(*tokenizers)
    found = [score(ByBytes(tokenizer), data, m) for m, tokenizer in enumerate(tokenizers)]
    constant = math.log(1e6)
    lengths = [math.log(f["perplexity"]) - constant for f in found]  # mean bytes of a token
    for f, length in zip(found, lengths, strict=True):
        nats = f["bits per byte"] * math.log(2)
        assert nats == pytest.approx(1 + constant / length, rel=1e-4)
    assert lengths[0] > lengths[1]  # the larger vocabulary has longer tokens


def test_a_model_that_gives_no_numbers() -> None:
    tokenizer = byte_level()
    model = llama(rows_of(tokenizer))
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="scores of LlamaForCausalLM are not finite"):
        score(model, windows(tokenizer), 0)


def test_which_classes_predict_the_next_token() -> None:
    assert is_causal(type(llama(40)).__name__)
    assert is_causal("GPT2LMHeadModel")
    assert not is_causal(type(bert(40)).__name__)
    assert not is_causal("")
