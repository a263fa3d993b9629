"""A generated program is judged by values, in another process than its own.

The program and its tests never share an interpreter. The candidate (the text up to the end of the completion) runs in
one sandbox, where it serves calls; the tests (the text behind the completion) run in a second sandbox, where every name
that the candidate defines is a proxy. Arguments and results travel as plain data: the tests compare values of built-in
types that their own process made, so ``sys.exit(0)``, an ``__eq__`` that is always true or a replaced ``assert`` in the
candidate decide nothing. When the tests have run to their end, their process writes a random word that only it was
given; no exit code counts.

Values that are no plain data (instances of the candidate's classes, functions) are references: the tests may call them
and read their attributes. Changes that a function makes in its arguments are not seen by the tests.
"""

from __future__ import annotations

import json

_PLAIN = """
import json
def enc(v, refs, depth=0):
    if depth > 60: raise ValueError("nested too deeply")
    t = type(v)
    if v is None: return ["n"]
    if t is bool: return ["b", v]
    if t is int: return ["i", hex(v)]
    if t is float: return ["f", v.hex()]
    if t is complex: return ["c", v.real.hex(), v.imag.hex()]
    if t is str: return ["s", v]
    if t is bytes: return ["y", v.hex()]
    if t is range: return ["r", [hex(v.start), hex(v.stop), hex(v.step)]]
    if t in (list, tuple, set, frozenset): return [t.__name__, [enc(x, refs, depth + 1) for x in v]]
    if t is dict: return ["dict", [[enc(k, refs, depth + 1), enc(x, refs, depth + 1)] for k, x in v.items()]]
    if t.__name__ in ("generator", "map", "filter", "zip", "dict_keys", "dict_values", "dict_items", "list_iterator",
                      "list_reverseiterator", "enumerate", "reversed"):
        return ["iter", [enc(x, refs, depth + 1) for _, x in zip(range(100000), v)]]
    return ["x", refs(v)]
def dec(e, ref):
    k = e[0]
    if k == "n": return None
    if k == "b": return bool(e[1])
    if k == "i": return int(e[1], 16)
    if k == "f": return float.fromhex(e[1])
    if k == "c": return complex(float.fromhex(e[1]), float.fromhex(e[2]))
    if k == "s": return str(e[1])
    if k == "y": return bytes.fromhex(e[1])
    if k == "r": return range(*[int(n, 16) for n in e[1]])
    if k in ("list", "tuple", "set", "frozenset"):
        return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[k](dec(x, ref) for x in e[1])
    if k == "dict": return {dec(a, ref): dec(b, ref) for a, b in e[1]}
    if k == "iter": return iter([dec(x, ref) for x in e[1]])
    if k == "x": return ref(e[1])
    raise ValueError("no such kind of value")
"""

_SERVER = (
    _PLAIN
    + """
import os
def serve(source, fd):
    stream = os.fdopen(fd, "r+b", buffering=0)
    space, kept = {"__name__": "__main__"}, []
    def refs(v):
        kept.append(v)
        return len(kept) - 1
    def answer(found):
        stream.write(json.dumps(found).encode() + b"\\n")
    exec(compile(source, "program.py", "exec"), space)
    answer({"ready": True})
    reader = os.fdopen(os.dup(fd), "rb")
    for line in reader:
        try:
            asked = json.loads(line)
            at = kept.__getitem__
            if asked["op"] == "name":
                answer({"value": enc(space[asked["name"]], refs)} if asked["name"] in space else {"absent": True})
                continue
            target = at(asked["ref"])
            if asked["op"] == "attribute":
                found = getattr(target, asked["name"])
            else:
                named = {k: dec(a, at) for k, a in asked["kwargs"].items()}
                found = target(*[dec(a, at) for a in asked["args"]], **named)
            answer({"value": enc(found, refs)})
        except Exception as error:
            answer({"raise": [type(error).__name__, str(error)[:500]]})
"""
)

_CHECKER = (
    _PLAIN
    + '''
import builtins, os
class Away(Exception):
    """The candidate's process has ended, or talks nonsense."""
def check(tests, fd, verdict_fd, word):
    stream, reader = os.fdopen(fd, "wb", buffering=0, closefd=False), os.fdopen(fd, "rb", closefd=False)
    class Ref:
        __slots__ = ("_n",)
        def __init__(self, n): object.__setattr__(self, "_n", int(n))
        def __call__(self, *args, **kwargs):
            sent = {"op": "call", "ref": self._n, "args": [enc(a, number) for a in args]}
            return ask({**sent, "kwargs": {k: enc(a, number) for k, a in kwargs.items()}})
        def __getattr__(self, name):
            if name.startswith("__"): raise AttributeError(name)
            return ask({"op": "attribute", "ref": self._n, "name": name})
    def number(value):
        if type(value) is Ref: return value._n
        raise TypeError("a test gives the program a " + type(value).__name__ + ", which is no plain data")
    def read():
        line = reader.readline(2 ** 24)
        try:
            found = json.loads(line)
        except ValueError:
            raise Away("the program ended before its tests did") from None
        if not isinstance(found, dict): raise Away("the program's process talks nonsense")
        return found
    def ask(what):
        stream.write(json.dumps(what).encode() + b"\\n")
        found = read()
        if "raise" in found:
            kind = getattr(builtins, str(found["raise"][0]), Exception)
            known = isinstance(kind, type) and issubclass(kind, Exception)
            raise (kind if known else Exception)(str(found["raise"][1]))
        if "value" not in found: raise KeyError(what.get("name"))
        return dec(found["value"], Ref)
    class Names(dict):
        def __missing__(self, name):
            if hasattr(builtins, name): raise KeyError(name)
            return ask({"op": "name", "name": name})
    if read() != {"ready": True}: raise Away("the program did not start")
    exec(compile(tests, "tests.py", "exec"), Names({"__name__": "__tests__", "__builtins__": builtins}))
    os.write(verdict_fd, word.encode())
'''
)


def candidate_program(source: str, fd: int) -> str:
    """Source of the first sandbox: the candidate, and a server of its names on a socket."""
    return f"{_SERVER}\nserve(json.loads({json.dumps(json.dumps(source))}), {fd})\n"


def test_program(tests: str, fd: int, verdict_fd: int, word: str) -> str:
    """Source of the second sandbox: the tests on proxies; then the word that says that they ended."""
    return f"{_CHECKER}\ncheck(json.loads({json.dumps(json.dumps(tests))}), {fd}, {verdict_fd}, {word!r})\n"
