"""Exceptions of Python's libraries reach people in words, not as names of classes."""

from __future__ import annotations

import errno
import http.client
import json
import os
import ssl

import pytest

from weft.objects.errors import begin_small, describe_failure


def make_tls_error(reason: str) -> ssl.SSLError:
    problem = ssl.SSLError(1, f"[SSL: {reason}] {reason.lower()} (_ssl.c:1002)")
    problem.reason = reason
    return problem


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (http.client.IncompleteRead(b"abc", 4), "its answer was cut off"),
        (http.client.RemoteDisconnected("Remote end closed connection"), "it hung up without an answer"),
        (http.client.BadStatusLine("SSH-2.0-OpenSSH"), "it answers with something else than HTTP"),
        (make_tls_error("WRONG_VERSION_NUMBER"), "what answers there doesn't speak TLS"),
        (make_tls_error("TLSV1_ALERT_UNKNOWN_CA"), "TLS failed: tlsv1 alert unknown ca"),
        (json.JSONDecodeError("Expecting value", "x", 0), "it is not JSON"),
        (TimeoutError("timed out"), "no answer in time"),
        (OSError(errno.ENOENT, os.strerror(errno.ENOENT), "/none"), "/none: no such file or directory"),
        (ValueError("the pool is full"), "the pool is full"),
        (KeyError(), "it failed without a word"),
    ],
)
def test_a_failure_is_described_without_the_name_of_its_class(problem: Exception, words: str) -> None:
    assert describe_failure(problem) == words


@pytest.mark.parametrize(
    ("text", "within"),
    [
        ("BMC of the machine", "BMC of the machine"),
        ("VMs that migrate", "VMs that migrate"),
        ("IPv4 address", "IPv4 address"),
        ("A machine", "a machine"),
        ("Reason, for people", "reason, for people"),
        ("", ""),
    ],
)
def test_what_goes_on_within_a_sentence_begins_small_unless_it_is_written_in_capitals(text: str, within: str) -> None:
    assert begin_small(text) == within
