import argparse
import dataclasses

import pytest

from swjax.commands.memory_arguments import NUMBERS, add_memory_arguments, read_memory
from swjax.commands.say import UsageError
from swjax.inference.memory import KEEP_ALL, MEMORIES, Window


def read(*words):
    add_memory_arguments(parser := argparse.ArgumentParser())
    return read_memory(parser.parse_args(words))


def test_numbers_of_a_policy_have_arguments_of_their_own():
    assert read() == KEEP_ALL
    assert read("--memory", "window", "--memory.sources", "300", "--memory.words=7") == Window(sources=300, words=7)
    assert read("--memory", "window:frames=3", "--memory.first_words", "2") == Window(frames=3, first_words=2)
    with pytest.raises(UsageError, match="--memory: memory keep_all has no numbers"):
        read("--memory.sources", "4")
    with pytest.raises(UsageError, match="words is given twice"):
        read("--memory", "window:words=3", "--memory.words", "4")


def test_all_numbers_of_all_policies_are_there():
    assert NUMBERS.keys() == {field.name for make in MEMORIES.values() for field in dataclasses.fields(make)}
