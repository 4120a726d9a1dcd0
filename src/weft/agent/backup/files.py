"""Single files of backups, for one stream each: a process of its own reads them from the repository (``backup/process/files.py``).

Key and credentials are read from the server with the ticket in the stream's claims, and go to the process over its standard input.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import msgspec

from weft.agent.backup.last_words import LastWords
from weft.agent.server.client import Server
from weft.backup.process.job import DATA, HEAD, FilesEnd, FilesJob
from weft.kinds.parts.stream_verbs import FilesInput
from weft.objects.errors import DriverFailed, Unavailable, error_from_dict
from weft.protocol.claims import Claims

MOST_AT_ONCE = 4


class BackupFiles:
    def __init__(self, state_dir: str, node: str, server: Server) -> None:
        self._cache, self._node, self._server = Path(state_dir) / "backup-catalogues", node, server
        self._under_way = 0

    async def read(self, claims: Claims, given: FilesInput | None) -> AsyncGenerator[tuple[str, bytes], None]:
        """Pieces of the answer, each with its channel: ``stdout``, or ``stderr`` for what people should know.
        ``given`` None: what is in the repository. Raises WeftError."""
        if self._under_way >= MOST_AT_ONCE:
            raise Unavailable(
                "this node reads files of other backups now", reason="tooManyStreams", retry_after_seconds=5.0
            )
        self._under_way += 1
        try:
            async with aclosing(self._run(await self._make_job(claims, given))) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._under_way -= 1

    async def _make_job(self, claims: Claims, given: FilesInput | None) -> FilesJob:
        place = claims.repository
        assert place is not None
        opened = await asyncio.to_thread(self._server.read_repository, self._node, place.name, place.ticket)
        job = FilesJob(
            act="contents",
            url=place.url,
            key=opened.values["key"],
            cache=str(self._cache),
            credentials=opened.credentials,
            ca=opened.ca,
            repository_id=place.id,
        )
        if given is None:
            return job
        return msgspec.structs.replace(
            job,
            act=given.act,
            backup=claims.guest_id,
            disk=given.disk,
            partition=given.partition,
            path=given.path,
        )

    async def _run(self, job: FilesJob) -> AsyncGenerator[tuple[str, bytes], None]:
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL"),  # it goes with the agent, however that ends
            *(sys.executable, "-m", "weft.backup.process.files"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        words = LastWords(process.stderr, job.secrets)
        try:
            process.stdin.write(msgspec.json.encode(job))
            process.stdin.close()
            while True:
                kind, length = HEAD.unpack(await process.stdout.readexactly(HEAD.size))
                body = await process.stdout.readexactly(length)
                if kind == DATA:
                    yield "stdout", body
                    continue
                end = msgspec.json.decode(body, type=FilesEnd)
                if end.error:
                    raise error_from_dict(end.error)
                if end.note:
                    yield "stderr", end.note.encode()
                return
        except asyncio.IncompleteReadError:
            said = await words.end()
            raise DriverFailed(
                f"the process that reads the backup ended{said}", reason="workerDied", hint="try again"
            ) from None
        finally:
            words.stop()
            if process.returncode is None:
                process.kill()
            await process.wait()
