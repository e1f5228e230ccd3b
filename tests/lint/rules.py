"""The lint rules. Each takes a Tree and yields Findings; lint.py runs them all, lint_test.py proves that they bite."""

import fnmatch
import pathlib
import posixpath
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property

from cpp_source import functions_of, includes_of, strip_literals, types_of

CPP_FOLDERS = ("src", "include", "tools", "bench", "tests", "examples")
CPP_SUFFIXES = (".cc", ".cu", ".h", ".inl")
TEXT_SUFFIXES = CPP_SUFFIXES + (".py", ".sh", ".rs", ".md", ".cmake", ".txt", ".json", ".toml")
SKIPPED_FOLDERS = {".git", "build", "models", "target", "data", "corpus", "__pycache__"}

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 800
LINE_CHARS_MAX = {".cc": 100, ".cu": 100, ".h": 100, ".inl": 100, ".py": 120, ".sh": 120, ".cmake": 120, ".md": 140}


@dataclass(frozen=True)
class Finding:
    path: str
    line: int
    message: str

    def __str__(self):
        return f"{self.path}:{self.line}: {self.message}"


class Tree:
    """The files of a checkout. `build` is a configured build folder, or None."""

    def __init__(self, root, build=None):
        self.root = pathlib.Path(root)
        self.build = pathlib.Path(build) if build else None

    @cached_property
    def files(self):
        """Every text file, as paths relative to the root."""
        found = []
        for path in sorted(self.root.rglob("*")):
            relative = path.relative_to(self.root)
            if SKIPPED_FOLDERS.isdisjoint(relative.parts) and path.is_file():
                if path.suffix in TEXT_SUFFIXES or path.name in ("Makefile", "run", ".clang-format", ".gitignore"):
                    found.append(relative.as_posix())
        return found

    @cached_property
    def cpp_files(self):
        return [f for f in self.files if f.endswith(CPP_SUFFIXES) and f.split("/")[0] in CPP_FOLDERS]

    @cached_property
    def texts(self):
        return {f: (self.root / f).read_text(encoding="utf-8", errors="replace") for f in self.files}

    @cached_property
    def codes(self):
        """C++ files without comments and the insides of literals."""
        return {f: strip_literals(self.texts[f]) for f in self.cpp_files}

    def resolve(self, include):
        """The file that `#include "include"` means, relative to the root, or None."""
        for folder in ("src/", "include/", "", "rust/textffi/include/"):
            if (self.root / (folder + include)).is_file():
                return folder + include
        return None


# The header by which kernels for a GPU see CUDA, and what stands in for it where they are emulated.
EMULATION = ("src/kernels/cuda/simt.h", "tests/simt/emulated.h")


def folder_of(path):
    """The row of the include table that `path` belongs to: src/kv, tools, include/tinyserve ..."""
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] in ("src", "include", "rust") else parts[0]


def include_table(tree):
    """{folder: set of folders and header names that it may include} from docs/ARCHITECTURE.md."""
    table = {}
    for line in (tree.root / "docs/ARCHITECTURE.md").read_text(encoding="utf-8").splitlines():
        row = re.match(r"\|\s*((?:`[\w/]+`\s*)+)\|[^|]*\|([^|]*)\|\s*$", line)
        if row:
            allowed = {word for word in re.split(r"[,\s`]+", row.group(2)) if word and word != "–"}
            for folder in re.findall(r"`([\w/]+)`", row.group(1)):
                table[folder] = allowed
    return table


def includes(tree):
    """Every #include "..." follows the table in docs/ARCHITECTURE.md."""
    table = include_table(tree)
    if "src/base" not in table:
        yield Finding("docs/ARCHITECTURE.md", 1, "the include table is missing or has no row `src/base`")
        return
    for path in tree.cpp_files:
        own = folder_of(path)
        if own not in table:
            yield Finding(path, 1, f"folder {own} has no row in the include table of docs/ARCHITECTURE.md")
            continue
        allowed = table[own]
        for line, quote, include in includes_of(tree.texts[path]):
            target = tree.resolve(include)
            if quote == "<":
                if target and not target.startswith("rust/"):
                    yield Finding(path, line, f'include our own header with quotes: "{include}"')
                continue
            if target is None:
                yield Finding(path, line, f'"{include}": no such file below src/, include/ or the root')
                continue
            other = folder_of(target)
            name = other.removeprefix("src/")
            if target.startswith("include/tinyserve/"):
                fine = include == "tinyserve/status.h" or own == other or target.split("/")[-1] in allowed
            elif target.startswith("rust/"):
                fine = own == "src/text"
            elif target.startswith("tests/"):
                fine = path.endswith("_test.cc") or (path, target) == EMULATION
            else:
                fine = other in ("src/base", own) or name in allowed
            if not (fine or "all" in allowed):
                yield Finding(path, line, f'"{include}": {own} may not include {other} (docs/ARCHITECTURE.md)')


# Files compiled with one target's instruction flags. What they share with other units must not hold code: the linker
# keeps one copy of an inline function, and it may keep the one that this machine cannot run.
TARGET_UNITS = ("src/kernels/cpu/target_*.cc", "src/kernels/cpu/*.inl")
TARGET_SYSTEM = {"immintrin.h", "stdint.h", "stddef.h", "string.h"}
TARGET_OWN = ("src/kernels/cpu/*.inl", "src/kernels/*.h", "src/page/*.h", "src/tensor/dtype.h", "src/tensor/blocks.h")
TARGET_SYSTEM_BELOW = TARGET_SYSTEM | {"cstdint", "cstddef"}  # in the headers of TARGET_OWN: declarations alone


def matches(path, patterns):
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def target_units(tree):
    """Per-target units include nothing that holds inline code, directly or through other headers."""
    seen = set()
    for path in tree.cpp_files:
        if matches(path, TARGET_UNITS) and path not in seen:
            yield from check_target_includes(tree, path, path, seen)


def check_target_includes(tree, unit, path, seen):
    seen.add(path)
    system = TARGET_SYSTEM if matches(path, TARGET_UNITS) else TARGET_SYSTEM_BELOW
    through = "" if path == unit else f" (included by {unit})"
    for line, quote, include in includes_of(tree.texts[path]):
        target = tree.resolve(include) if quote == '"' else None
        if quote == "<" and include not in system:
            yield Finding(path, line, f"<{include}> may hold inline code: per-target units must not share it{through}")
        elif target and not matches(target, TARGET_OWN):
            yield Finding(path, line, f'"{include}" is no plain-data header that per-target units share{through}')
        elif target and target not in seen:
            yield from check_target_includes(tree, unit, target, seen)


def target_objects(tree):
    """The objects of the per-target units define no weak symbol: no code of theirs can replace another unit's."""
    units = [f for f in tree.cpp_files if matches(f, ("src/kernels/cpu/target_*.cc",))]
    if not tree.build or not units:
        return
    for unit in units:
        objects = list(tree.build.glob(f"CMakeFiles/*.dir/{unit}.o"))
        if not objects:
            yield Finding(unit, 1, f"has no object in {tree.build}: is it in a library, and is that built?")
        for file in objects:
            listing = subprocess.run(["nm", "-C", "--defined-only", str(file)], capture_output=True, text=True,
                                     check=True).stdout
            for line in listing.splitlines():
                symbol = re.match(r"[0-9a-f]*\s+([WwVvu])\s+(.*)", line)
                # DW.ref.*: the personality pointer of exception tables, data that is equal everywhere.
                if symbol and not symbol.group(2).startswith("DW.ref."):
                    yield Finding(unit, 1, f"its object defines the weak symbol {symbol.group(2)}: make it static")


def line_length(tree):
    for path in tree.files:
        limit = LINE_CHARS_MAX.get(pathlib.Path(path).suffix)
        in_code = False
        for number, line in enumerate(tree.texts[path].splitlines(), 1) if limit else ():
            in_code ^= path.endswith(".md") and line.lstrip().startswith("```")
            # A table row or a command line cannot be broken, and neither can a long address.
            exempt = path.endswith(".md") and (in_code or line.startswith("|")) or re.search(r"https?://\S{60,}", line)
            if len(line) > limit and not exempt:
                yield Finding(path, number, f"{len(line)} characters: at most {limit}")


def read_exceptions(tree):
    """{(kind, path, name): (lines, line number)} of exceptions.txt."""
    path, found = "tests/lint/exceptions.txt", {}
    for number, line in enumerate(tree.texts.get(path, "").splitlines(), 1):
        words = line.split("#")[0].split()
        if words:
            kind, file, *name, lines = words
            found[kind, file, " ".join(name)] = (int(lines), number)
    return found


def sizes(tree):
    """Functions and files keep to the limits, but for the exact sizes in exceptions.txt."""
    exceptions = read_exceptions(tree)
    for path in tree.files:
        if path.endswith(CPP_SUFFIXES + (".py", ".rs", ".sh", ".cmake")):
            measured = [("file", "", 1, tree.texts[path].count("\n"), FILE_LINES_MAX)]
            if path in tree.codes:
                measured += [("function", f.name, f.line, f.lines, FUNCTION_LINES_MAX)
                             for f in functions_of(tree.codes[path])]
            for kind, name, line, lines, limit in measured:
                excepted, _ = exceptions.get((kind, path, name), (limit, 0))
                if lines > excepted:
                    yield Finding(path, line, f"{kind} {name} has {lines} lines: at most {excepted}")
                elif lines > limit and lines == excepted:
                    del exceptions[kind, path, name]
    for (kind, path, name), (lines, number) in exceptions.items():
        yield Finding("tests/lint/exceptions.txt", number,
                      f"{kind} {path} {name} no longer has {lines} lines: lower the figure, or remove the entry")


ANYWHERE = ("src/*", "include/*", "tools/*", "bench/*", "tests/*", "examples/*")
LIBRARY = ("src/*", "include/*")
SHIPPED = LIBRARY + ("tools/*",)
# (pattern in the stripped code, files, what to use). Unit tests may do what is banned in LIBRARY or SHIPPED code.
BANNED = [
    (r"\bv?sprintf\s*\(|\bstr(cpy|cat|tok)\s*\(|\bgets\s*\(", ANYWHERE, "unbounded: std::string or fmt::format"),
    (r"\bato[ifl]l?\s*\(|\bstd::sto[a-z]+\s*\(", SHIPPED, "hides errors or throws: std::from_chars"),
    (r"\bs?rand\s*\(|\bstd::random_device\b", ANYWHERE, "not reproducible: a seeded generator"),
    (r"(?<![\w.:>])(system|popen|alloca)\s*\(", ANYWHERE, "no shells, no unbounded stack"),
    (r"\bstd::regex\b|#\s*include\s*<regex>", SHIPPED, "slow, and recursive on outside bytes: write the parser"),
    (r"\bassert\s*\(|#\s*include\s*<(cassert|assert\.h)>", LIBRARY, "vanishes or aborts mutely: TS_CHECK"),
    (r"\bthrow\b", LIBRARY, "errors are a Status"),
    (r"\bstd::(cout|cerr)\b|(?<![\w:])printf\s*\(", LIBRARY, "a library does not print: return it to the caller"),
    (r"\bdelete\b", ANYWHERE, "naked delete: an owner (std::unique_ptr)"),
    (r"\bnew\s+[A-Za-z_]", ANYWHERE, "naked new: std::make_unique, or std::unique_ptr<T>(new T(...)) on one line"),
]
# What makes an otherwise banned line fine.
FINE = re.compile(r"\b(unique|shared)_ptr<.*\bnew\b|\.reset\(new\b|AddGlobalTestEnvironment\(new\b"
                  r"|\boperator\s+(new|delete)\b|=\s*delete\b")


def banned(tree):
    for path, code in tree.codes.items():
        in_test = path.endswith("_test.cc")
        for number, line in enumerate(code.splitlines(), 1):
            for pattern, files, instead in BANNED:
                if files is not ANYWHERE and in_test or not matches(path, files):
                    continue
                hit = re.search(pattern, line)
                if hit and not FINE.search(line):
                    yield Finding(path, number, f"`{hit.group().strip()}` is banned: {instead}")


# In any text file: paths of one machine, and promises instead of code. Spelled so that this file does not match.
FORBIDDEN = re.compile(r"(?<![\w.])/(?:work|root|home/\w+)/|/tmp/(?:bash|m/)|\b(?:TO" r"DO|FIX" r"ME)\b")


def forbidden_words(tree):
    for path in tree.files:
        if path.startswith("tests/lint/"):
            continue  # the rules and their tests name what they forbid
        for number, line in enumerate(tree.texts[path].splitlines(), 1):
            hit = FORBIDDEN.search(line)
            if hit:
                yield Finding(path, number, f"`{hit.group()}`: a path of one machine, or a promise instead of code")
            if line != line.rstrip() and not path.endswith(".txt"):  # texts that tests read may hold any white space
                yield Finding(path, number, "white space at the end of the line")


def header_guards(tree):
    for path in tree.cpp_files:
        if path.endswith(".h"):
            inner = path.removeprefix("src/").removeprefix("include/tinyserve/")
            guard = "TINYSERVE_" + re.sub(r"\W", "_", inner).upper() + "_"
            code = tree.codes[path]
            if not re.search(rf"^#ifndef {guard}\n#define {guard}\n", code, re.M):
                yield Finding(path, 1, f"has no include guard {guard}")
            elif not re.search(rf"#endif  // {guard}\s*$", tree.texts[path]):
                yield Finding(path, 1, f"does not end in #endif  // {guard}")
            if re.search(r"^\s*using namespace\b", code, re.M):
                yield Finding(path, 1, "`using namespace` in a header reaches every file that includes it")


def one_definition(tree):
    """A name means one type. Two of one name, in files that never see each other, build and link, and are undefined
    behaviour: whichever of two inline functions the linker keeps serves both."""
    first = {}
    for path in tree.cpp_files:
        for line, name in types_of(tree.codes[path]) if path != EMULATION[1] else ():
            other = first.setdefault(name, path)
            if other != path:
                yield Finding(path, line, f"{name} is another type in {other}: give it another name, or hide it in an "
                                          "unnamed namespace")


def dead_files(tree):
    """Every header is included, every .cc and .cu is compiled, every test runs."""
    included = {tree.resolve(i) for path in tree.cpp_files for _, _, i in includes_of(tree.texts[path])}
    for path in tree.cpp_files:
        if not path.endswith((".cc", ".cu")) and path not in included and not path.startswith("include/"):
            yield Finding(path, 1, "no file includes it")
    for path in tree.files:
        if re.fullmatch(r"tests/.*(test_[^/]*|_test)\.py", path):
            cmake = str(pathlib.PurePosixPath(path).parent / "CMakeLists.txt")
            if pathlib.PurePosixPath(path).name not in tree.texts.get(cmake, ""):
                yield Finding(path, 1, f"{cmake} does not register it")
    if tree.build:
        yield from unbuilt_files(tree, included)


# Sources that some builds leave out, by a target of every build that has them: fibers and sanitizers do not go
# together, and few builds have CUDA.
LEFT_OUT = {"ts_cuda_emulated": ("src/kernels/cuda/*.cu", "tests/simt/*.cc"), "gpu_rows_test": ("tests/cuda/*.cc",)}


def unbuilt_files(tree, included):
    """What the configured build itself says: its build rules, and its lists of tests. A kernel that nvcc makes an image
    of has no object; where no nvcc is, a test that includes it compiles it."""
    ninja = subprocess.run(["ninja", "-C", str(tree.build), "-t", "targets", "all"], capture_output=True, text=True,
                           check=True).stdout
    objects = re.findall(r"^(?:(.*)/)?CMakeFiles/([^/]+)\.dir/(.*\.(?:cc|cu))\.o:", ninja, re.M)
    # A source outside of its target's folder: .. is written as __ in the name of its object.
    target_of = {posixpath.normpath("/".join(filter(None, (folder, source.replace("__/", "../"))))): target
                 for folder, target, source in objects}
    registered = "\n".join(file.read_text() for file in tree.build.rglob("CTestTestfile.cmake"))
    run = {word for line in re.findall(r"^add_test\(.*", registered, re.M) for word in re.findall(r'/([^"/]+)"', line)}
    has = set(target_of.values())
    left_out = [pattern for target, patterns in LEFT_OUT.items() if target not in has for pattern in patterns]
    for path in tree.cpp_files:
        if not path.endswith((".cc", ".cu")) or matches(path, left_out):
            continue
        if path not in target_of:
            if not (path.endswith(".cu") and path in included):
                yield Finding(path, 1, "no target compiles it")
        elif path.endswith("_test.cc") and target_of[path] not in run:
            yield Finding(path, 1, f"ctest does not run its program {target_of[path]}")


def formatting(tree):
    """clang-format has nothing to change. Without clang-format this rule is not run; lint.py says so."""
    if not shutil.which("clang-format") or not tree.cpp_files:
        return
    result = subprocess.run(["clang-format", "--dry-run", "-Werror", "--ferror-limit=1", *tree.cpp_files],
                            cwd=tree.root, capture_output=True, text=True, check=False)
    for path, line in re.findall(r"^(\S+?):(\d+):\d+: error:", result.stderr, re.M):
        yield Finding(path, int(line), "is not formatted: make format")
    if result.returncode and "error:" not in result.stderr:
        yield Finding(".clang-format", 1, f"clang-format failed: {result.stderr.strip()[:300]}")


RULES = (includes, target_units, target_objects, line_length, sizes, banned, forbidden_words, header_guards,
         one_definition, dead_files, formatting)
