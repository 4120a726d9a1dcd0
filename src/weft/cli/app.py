"""The ``weft`` command: reads the command line, runs one verb, and turns every outcome into a message and an exit code."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence

import click

import weft
from weft.cli.command import grammar, options
from weft.cli.command.errors import complain, complain_of_usage
from weft.cli.command.exit_codes import ERROR, INTERRUPTED, OK, SIGPIPE
from weft.cli.command.lookup import clarify
from weft.cli.session import Clock, Session
from weft.objects.errors import InvalidInput, WeftError

_HELP = "Place, run and watch virtual machines, containers, functions and jobs on a cluster."


def make_root() -> grammar.Root:
    """The whole command tree; its leaves are loaded when used."""
    version = click.Option(
        ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
    )
    root = grammar.Root(
        "weft",
        help=_HELP,
        params=[*options.common(), version],
        no_args_is_help=False,
        invoke_without_command=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    root.callback = grammar.show_help
    return root


def run(argv: Sequence[str], make_clock: Callable[[], Clock]) -> int:
    """Run ``weft`` with ``argv`` (without the program's name); the exit code. All output is printed already."""
    session = Session(make_clock)
    session.typed = list(argv)
    try:
        code = make_root().main(
            list(argv), prog_name="weft", complete_var="_WEFT_COMPLETE", standalone_mode=False, obj=session
        )
        sys.stdout.flush()
        return code if isinstance(code, int) else OK
    except SystemExit:
        if session.environ.get("_WEFT_COMPLETE", "").endswith("_complete"):  # TAB was answered: the next one sooner
            sys.stdout.flush()
            importlib.import_module("weft.cli.command.completion_grammar").write_in_background(
                make_root(), session.environ
            )
        raise
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except click.ClickException as problem:
        return complain_of_usage(problem, _guess_output(session, argv), session.color)
    except WeftError as problem:
        if problem.token == WeftError.reason:  # a refusal has its sentence; where it was raised says nothing
            _show_trace(session)
        return complain(clarify(session, problem), _find_output(session), session.color, session.debug)
    except (BrokenPipeError, grammar.ReaderGone):
        if not _is_reader_gone():  # another pipe or connection broke, which is no success
            words = "a connection or a pipe was closed by its other end"
            return complain(WeftError(words, reason="ioFailed"), _find_output(session), session.color, session.debug)
        _drop_output()
        return SIGPIPE if session.unfinished else OK  # the reader has read enough
    except OSError as problem:  # a full disk behind standard output, a folder that can't be read
        _show_trace(session)
        words = f"{problem.filename or 'input or output'}: {problem.strerror or problem}"
        code = complain(
            WeftError(words, reason="ioFailed", hint=_find_remedy(problem)), _find_output(session), session.color
        )
        _drop_output()
        return code
    except Exception as problem:  # a defect is reported as one; only --debug shows where
        _show_trace(session)
        wrong = [number for number, word in enumerate(argv, 1) if not _is_utf8(word)]
        if wrong and isinstance(problem, UnicodeEncodeError):
            what = f"argument {wrong[0]} of the command line is not valid UTF-8"
            hint = "give it in UTF-8; only paths of this machine may be other bytes"
            return complain(InvalidInput(what, hint=hint), _find_output(session), session.color)
        bug = WeftError(
            f"{type(problem).__name__}: {problem}",
            hint="this is a bug in weft; run the command again with --debug to see where",
        )
        complain(bug, _find_output(session), session.color)
        return ERROR


def _is_utf8(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _find_remedy(problem: OSError) -> str | None:
    folder = os.path.dirname(os.path.abspath(problem.filename)) if isinstance(problem.filename, str) else ""
    if folder and not os.path.isdir(folder):
        return f"there is no folder {folder}: create it first, or give another path"
    return {
        errno.EACCES: "give a path that you may write, or read",
        errno.EISDIR: "that is a folder: give a file in it",
        errno.ENOSPC: "free disk space, or give a path on another disk",
    }.get(problem.errno or 0)


def _show_trace(session: Session) -> None:
    """Show, for --debug, where the error that is being handled came from; secrets in its words are taken out."""
    if session.debug:
        module = importlib.import_module("traceback")
        session.notify(importlib.import_module("weft.trust.redaction").hide_in_text(module.format_exc().rstrip()))


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        print(f"weft {weft.__version__}")
        context.exit()


def _guess_output(session: Session, argv: Sequence[str]) -> str:
    """The requested output, also of a command line that couldn't be parsed to its end."""
    text = " ".join(argv)
    wanted = any(
        sign in f" {text} " for sign in (" -o json ", " -ojson ", " --output=json ", " --output json ", " -o=json ")
    )
    return "json" if wanted else _find_output(session)


def _find_output(session: Session) -> str:
    """The form in which errors are printed, also if reading that setting failed."""
    try:
        return session.output
    except WeftError:
        return "table"


def _is_reader_gone() -> bool:
    """Whether nobody reads standard output, or standard error, any more."""
    select = importlib.import_module("select")
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _drop_output() -> None:
    """Standard output's reader is gone: the interpreter's last flush goes to /dev/null."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
