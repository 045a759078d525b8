"""Tokenizers of three kinds, trained here on a small text, and small models for them."""

import json
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer

TEXT = """The quick brown fox jumps over the lazy dog, while seven wizards box in a mixed zoo.
"Naïve cafés," said the fox; "don't they serve crème brûlée?" — they do not.
Numbers such as 1, 23 and 456 are quoted (in brackets); 日本語 is written without spaces.
Where there is a will there is a way, and the wizards will find their way to the zoo.
"""


def byte_level(size: int = 330, text: str = TEXT, **special: str) -> Any:
    """GPT-2's kind."""
    special = special or {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=sorted(set(special.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def unigram(size: int = 160, text: str = TEXT) -> Any:
    """Sentencepiece's kind: spaces as ▁, single bytes for what is unknown, bos in front."""
    tokenizer = Tokenizer(models.Unigram(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback()])
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    fallback = [f"<0x{value:02X}>" for value in range(256)]
    trainer = UnigramTrainer(
        vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    tokenizer = with_bytes(tokenizer, fallback)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )


def with_bytes(tokenizer: Tokenizer, fallback: list[str]) -> Tokenizer:
    """The trainer knows no byte tokens; they are put behind what it found."""
    body = json.loads(tokenizer.to_str())
    body["model"]["byte_fallback"] = True
    body["model"]["vocab"] += [[token, -20.0] for token in fallback]
    return Tokenizer.from_str(json.dumps(body))


def wordpiece(size: int = 160, text: str = TEXT) -> Any:
    """BERT's kind: lower case, ## inside words, [CLS] and [SEP] around."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def llama(rows: int, *, tied: bool = False, layers: int = 1, hidden: int = 16, **kwargs: Any):
    torch.manual_seed(rows + layers)
    config = tf.LlamaConfig(
        vocab_size=rows,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        **{"bos_token_id": 0, "eos_token_id": 0, "max_position_embeddings": 64, **kwargs},
    )
    return tf.LlamaForCausalLM(config).eval()


def bert(rows: int, layers: int = 1, hidden: int = 16):
    torch.manual_seed(rows + layers)
    config = tf.BertConfig(
        vocab_size=rows,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return tf.BertForMaskedLM(config).eval()
