import argparse
import dataclasses

import pytest

from swjax.commands.memory_arguments import (
    DROP_NUMBERS,
    MEMORY_NUMBERS,
    add_memory_arguments,
    read_drop,
    read_memory,
)
from swjax.commands.say import UsageError
from swjax.inference.dropping import DROPS, DTD, EVS, PixelDTD
from swjax.inference.memory import KEEP_ALL, MEMORIES, Window
from swjax.streaming import StreamSpec


def read(*words, read=read_memory, **record):
    add_memory_arguments(parser := argparse.ArgumentParser())
    return read(parser.parse_args(words), StreamSpec(**record))


def test_numbers_of_a_policy_have_arguments_of_their_own():
    assert read() == KEEP_ALL
    assert read("--memory", "window", "--memory.sources", "300", "--memory.words=7") == Window(sources=300, words=7)
    assert read("--memory", "window:frames=3", "--memory.first_words", "2") == Window(frames=3, first_words=2)
    with pytest.raises(UsageError, match="--memory: memory keep_all takes no numbers"):
        read("--memory.sources", "4")
    with pytest.raises(UsageError, match="words is given twice"):
        read("--memory", "window:words=3", "--memory.words", "4")


def test_and_those_of_a_rule_of_dropping():
    assert read(read=read_drop) is None
    assert read("--drop", "dtd", "--drop.tau", "0.25", "--drop.against=last_kept", read=read_drop) == DTD(
        0.25, "last_kept"
    )
    assert read("--drop", "evs:share=0.5", read=read_drop) == EVS(0.5)
    with pytest.raises(UsageError, match="--drop: unknown rule of dropping 'no'"):
        read("--drop", "no", read=read_drop)


def test_what_the_model_was_trained_with_is_the_default():
    record = {"memory": "window:sources=300", "drop": "dtd_pixels:tau=0.2"}
    assert read(**record) == Window(sources=300)
    assert read("--memory.words", "7", **record) == Window(sources=300, words=7)
    assert read("--memory", "keep_all", **record) == KEEP_ALL
    assert read(read=read_drop, **record) == PixelDTD(0.2)
    assert read("--drop", "none", read=read_drop, **record) is None


@pytest.mark.parametrize(("numbers", "table"), [(MEMORY_NUMBERS, MEMORIES), (DROP_NUMBERS, DROPS)])
def test_all_numbers_of_all_policies_are_there(numbers, table):
    assert numbers.keys() == {field.name for make in table.values() for field in dataclasses.fields(make)}
    add_memory_arguments(parser := argparse.ArgumentParser())
    assert all(name in parser.format_help() for name in table)
