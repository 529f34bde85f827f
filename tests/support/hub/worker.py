"""Runs pieces of code that come over a pipe, in a process of its own that speaks to this machine alone."""

import contextlib
import io
import socket

from forks import enter


def serve(pipe, variables):
    """Answer every piece of code with its ``result``, or with the error it raised, until the pipe is closed."""
    enter(variables, fresh=True)
    connect = socket.socket.connect

    def connect_here(self, address):
        assert not isinstance(address, tuple) or address[0] in ("127.0.0.1", "::1"), f"a request to {address}"
        return connect(self, address)

    socket.socket.connect = connect_here
    scope = {}
    while True:
        try:
            code = pipe.recv()
        except EOFError:
            return
        pipe.send(_answer(code, scope))


def _answer(code, scope):
    printed = io.StringIO()
    answer = {}
    with contextlib.redirect_stdout(printed):
        try:
            scope.pop("result", None)
            exec(code, scope)
            answer["result"] = scope.get("result")
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {error}"
            answer["causes"] = [
                repr(error.__cause__),
                repr(error.__context__) if not error.__suppress_context__ else "",
            ]
    answer["printed"] = printed.getvalue()
    return answer
