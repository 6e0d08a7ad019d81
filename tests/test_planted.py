"""The benchmark of planted methods."""

from collections import Counter

from benchmarks.planted import PLANTED, said_of, table


def test_two_names_of_one_balancer_are_not_told_apart(tmp_path):
    word = said_of(PLANTED["one balancer"], tmp_path, repeat=0, trials=1, seeds=2)
    assert word in ("equivalent", "not told apart")


def test_the_table_counts_the_words():
    text = table({"worse": Counter(["worse", "worse", "equivalent"])})
    assert text.splitlines()[2] == "| worse | 0 | 2 | 1 | 0 | 0 | worse in 95 % or more |"
