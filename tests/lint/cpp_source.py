"""What the lint rules know of a C++ file: its code without comments and literals, its includes, functions and types."""

import re
from dataclasses import dataclass

RAW_STRING = re.compile(r'R"([^\s()\\]{0,16})\(')
KEYWORD_SCOPE = re.compile(r"\b(namespace|class|struct|union|enum|extern)\b")
NAME = re.compile(r"(~?[\w:]+|operator\s*\S+?)\s*$")
TYPE_NAME = re.compile(r"\b(?:class|struct|union|enum(?:\s+class)?)\s+(\w+)\s*(?:final\b\s*)?(?::[^:].*)?$", re.S)


def blank(text):
    """Spaces of the same length, with its line breaks."""
    return re.sub(r"[^\n]", " ", text)


def end_of_quoted(text, start):
    """The index after the string or character literal that opens at `start`."""
    quote, i = text[start], start + 1
    while i < len(text) and text[i] not in (quote, "\n"):
        i += 2 if text[i] == "\\" else 1
    return i + 1


def strip_literals(text):
    """`text` with comments and the insides of literals turned into spaces; lines and columns stay where they are."""
    out, i = [], 0
    while i < len(text):
        raw = RAW_STRING.match(text, i) if text[i] == "R" else None
        if text.startswith("//", i):
            end = text.find("\n", i)
            end = len(text) if end < 0 else end
            out.append(blank(text[i:end]))
        elif text.startswith("/*", i):
            end = text.find("*/", i + 2)
            end = len(text) if end < 0 else end + 2
            out.append(blank(text[i:end]))
        elif raw:
            close = text.find(f"){raw.group(1)}\"", raw.end())
            end = len(text) if close < 0 else close + len(raw.group(1)) + 2
            out.append('""' + blank(text[i + 2 : end]))
        elif text[i] == '"' or (text[i] == "'" and not (i and text[i - 1].isalnum())):  # 1'000 is no literal
            end = min(end_of_quoted(text, i), len(text))
            out.append(text[i] + blank(text[i + 1 : end - 1]) + text[end - 1])
        else:
            out.append(text[i])
            end = i + 1
        i = end
    return "".join(out)


def strip_directives(code):
    """`code` without preprocessor lines: macro bodies may hold braces that do not balance."""
    return re.sub(r"^[ \t]*#(?:[^\n\\]|\\\n|\\.)*", lambda match: blank(match.group(0)), code, flags=re.M)


def outside_parentheses(statement):
    """`statement` with everything inside (...) and template <...> heads removed."""
    statement = re.sub(r"\b(alignas|__attribute__|decltype|requires|noexcept)\s*\(+[^()]*(\([^()]*\))*[^()]*\)+", " ",
                       statement)
    out, depth = [], 0
    for char in statement:
        depth -= char == ")"
        if depth <= 0 or (char == "(" and depth == 0):
            out.append(char)
        depth += char == "("
    return re.sub(r"\btemplate\s*<[^{}]*?>(?=\s*[\w\[:~])", " ", "".join(out))


def kind_of_scope(statement):
    """What a `{` opens after `statement`: 'scope' (namespace, class ...), 'function' or 'other' (an initialiser)."""
    shape = re.sub(r"\boperator\s*[^\s\w(]+", "operator", outside_parentheses(statement)).rstrip()
    if "(" in shape and "=" not in shape.split("(")[0]:
        in_member_list = re.search(r"\)[^():{}]*:(?!:)", shape) and re.search(r"[\w>]$", shape)
        return "other" if in_member_list else "function"  # `Foo() : a_{1}` goes on; `Foo() : a_(1) {` is a body
    return "scope" if KEYWORD_SCOPE.search(shape) and "=" not in shape else "other"


@dataclass
class Function:
    name: str
    line: int  # of its first line, from 1
    lines: int  # from its first line to the closing brace


def functions_of(code):
    """Every function defined in `code` (the output of strip_literals), outermost bodies only."""
    code = strip_directives(code)
    found, start = [], 0  # start: where the statement begins that a `{` would belong to
    kind, nested = "", 0  # of the function or initialiser that we are in: its open braces
    for match in re.finditer(r"[{};]", code):
        i, char = match.start(), match.group()
        if nested:
            nested += {"{": 1, "}": -1, ";": 0}[char]
            if not nested and kind == "function":
                found.append(measure(code, start, i))
                start = i + 1
            continue
        if char == "{":
            kind = kind_of_scope(code[start:i])
            if kind != "scope":
                nested = 1
                continue
        start = i + 1
    return found


def types_of(code):
    """Yields (line, qualified name) of each type defined in `code` that other files' types may collide with: not those
    of unnamed namespaces, classes and functions."""
    code = strip_directives(code)
    scopes, start = [], 0  # scopes: of the open braces, a namespace's name, or None for what hides its types
    for match in re.finditer(r"[{};]", code):
        i, char, statement = match.start(), match.group(), code[start:match.start()]
        start = i + 1
        if char == "}" and scopes:
            scopes.pop()
        if char != "{":
            continue
        space = re.search(r"\bnamespace\b\s*([\w:]*)\s*$", statement)
        if space or re.search(r'\bextern\s*"[^"]*"\s*$', statement):
            scopes.append((space.group(1) or None) if space else "")
            continue
        name = TYPE_NAME.search(outside_parentheses(statement))
        if name and None not in scopes and kind_of_scope(statement) == "scope":
            yield code.count("\n", 0, i) + 1, "::".join([*filter(None, scopes), name.group(1)])
        scopes.append(None)


def measure(code, start, end):
    """The Function whose text is code[start..end]."""
    text = re.sub(r"^(\s|\b(public|private|protected)\s*:(?!:))*", "", code[start : end + 1])
    first = end + 1 - len(text)
    head = text[: text.find("{")]
    test = re.match(r"(TEST|TEST_F|TEST_P|TYPED_TEST)\(\s*(\w+),\s*(\w+)\s*\)", head)
    name = NAME.search(head[: head.find("(")])
    shown = f"{test.group(2)}.{test.group(3)}" if test else name.group(1) if name else "?"
    return Function(shown, code.count("\n", 0, first) + 1, code.count("\n", first, end) + 1)


def includes_of(text):
    """Yields (line, '<' or '"', path) of each #include."""
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r'\s*#\s*include\s*([<"])([^">]+)[">]', line)
        if match:
            yield number, match.group(1), match.group(2)
