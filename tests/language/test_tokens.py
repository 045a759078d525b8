"""Tokens of different kinds in one form, and which of them are the same."""

from typing import Any

import pytest
from language_models import TEXT, byte_level, unigram, wordpiece
from tokenizers import AddedToken

from hetmerge.errors import InputError
from hetmerge.tokens import Tokens, counterparts, same_tokens, tokens_of

KINDS = {"byte level": byte_level, "unigram": unigram, "wordpiece": wordpiece}


def names_of(tokenizer: Any) -> dict[int, tuple[str, bytes]]:
    return {i: name for name, i in tokens_of(tokenizer).ids.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_has_a_name_of_its_own(kind: str) -> None:
    tokenizer = KINDS[kind]()
    tokens = tokens_of(tokenizer)
    assert sorted(tokens.ids.values()) == sorted(tokenizer.get_vocab().values())


@pytest.mark.parametrize("kind", ["byte level", "unigram"])
def test_names_in_a_row_spell_the_text(kind: str) -> None:
    tokenizer = KINDS[kind]()
    names = names_of(tokenizer)
    text = "the wizards jump, naïve 日本 ∞ 7!\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    spelt = b"".join(names[i][1] for i in ids)
    assert spelt.removeprefix(b" " if kind == "unigram" else b"") == text.encode()


def test_wordpiece_gets_its_spaces_back() -> None:
    tokenizer = wordpiece()
    names = names_of(tokenizer)
    ids = tokenizer("the fox, the dog; the way!", add_special_tokens=False)["input_ids"]
    spelt = b"".join(b"?" if names[i][0] == "special" else names[i][1] for i in ids)
    assert spelt == b" the fox, the dog; the way?"  # there is no ! in the text it was trained on


def test_the_same_word_has_one_name_in_all_kinds() -> None:
    found = [tokens_of(make()).ids for make in KINDS.values()]
    for name in (("text", b" the"), ("text", b","), ("text", b"e")):
        assert all(name in ids for ids in found), name


def test_bytes_meet_bytes() -> None:
    bpe, pieces = tokens_of(byte_level()), tokens_of(unigram())
    same = counterparts(pieces, bpe)
    vocab = unigram().get_vocab()
    letters = byte_level().get_vocab()
    assert same[vocab["<0xE2>"]] == letters["â"]  # the letter byte-level BPE writes for 0xE2
    assert same[vocab["<0x0A>"]] == letters["Ċ"]
    assert pieces.ids["byte", b"e"] == vocab["<0x65>"]  # "e" is a piece itself
    assert vocab["<0x65>"] not in same


def test_special_tokens_meet_by_form_and_then_by_role() -> None:
    llama, gpt, bert = (tokens_of(make()) for make in (unigram, byte_level, wordpiece))
    end = gpt.roles["eos"]
    assert end == gpt.roles["bos"]
    assert counterparts(llama, gpt)[llama.roles["eos"]] == end
    assert llama.roles["bos"] not in counterparts(llama, gpt)
    same = counterparts(bert, llama)
    for role in ("pad", "unk"):
        assert same[bert.roles[role]] == llama.roles[role]
    assert bert.roles["mask"] not in same


def test_a_form_goes_before_a_role() -> None:
    """Chat models end with another token than their base, and pad with the base's end."""
    base = byte_level(eos_token="<|end|>", pad_token="<|end|>")
    chat = byte_level(eos_token="<|turn|>", pad_token="<|end|>")
    mine, theirs = tokens_of(chat), tokens_of(base)
    same = counterparts(mine, theirs)
    assert same[mine.roles["pad"]] == theirs.roles["eos"]
    assert mine.roles["eos"] not in same


def test_two_tokens_of_one_content() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken(" the", normalized=False), AddedToken("é", normalized=False)])
    names = names_of(tokenizer)
    ids = tokenizer.get_vocab()
    assert names[ids["Ġthe"]] == ("text", b" the")
    assert names[ids[" the"]] == ("text+", b" the")
    assert "é".encode() in (names[ids["é"]][1],)


def test_same_tokenizers() -> None:
    assert same_tokens(tokens_of(byte_level()), tokens_of(byte_level()))
    assert not same_tokens(tokens_of(byte_level()), tokens_of(byte_level(320)))
    assert not same_tokens(tokens_of(byte_level()), tokens_of(byte_level(text=TEXT.upper())))


def test_counterparts_are_one_to_one() -> None:
    made = [tokens_of(make()) for make in KINDS.values()]
    for mine in made:
        for theirs in made:
            same = counterparts(mine, theirs)
            assert len(set(same.values())) == len(same)
            assert {b: a for a, b in same.items()} == counterparts(theirs, mine)
        assert counterparts(mine, mine) == {i: i for i in mine.ids.values()}


def test_tokenizers_without_a_backend_are_refused() -> None:
    with pytest.raises(InputError, match="tokenizer object: not backed by the tokenizers library"):
        tokens_of(object())


def test_roles_without_tokens() -> None:
    empty = Tokens({}, {}, frozenset())
    assert counterparts(empty, tokens_of(wordpiece())) == {}
