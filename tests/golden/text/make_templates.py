"""Renders the chat templates of templates/ the way transformers does, into templates.golden.

    python make_templates.py [--check]

Each line: template, add_generation_prompt, bos, eos, messages, further variables, "text" or "raises", and the text or
the exception's message. Words are escaped as in make_tokenizers.py.
"""

import argparse
import json
import pathlib
import sys

import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template as compile_template

HERE = pathlib.Path(__file__).parent

SHORT = [{"role": "user", "content": "Hi"}]
CHAT = [
    {"role": "system", "content": "  Be brief. "},
    {"role": "user", "content": "What is 2+2?"},
    {"role": "assistant", "content": " It is <4> & 'four'.\n"},
    {"role": "user", "content": "Sûr? \U0001f914 <|im_end|>\n\n{{ 7 * 7 }} {% raw %}"},
]
NO_SYSTEM = CHAT[1:]
ENDS_WITH_ASSISTANT = CHAT[:3]
EMPTY_CONTENT = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""},
                 {"role": "user", "content": " "}]
THINKS = [{"role": "user", "content": "Think."}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nDone."},
          {"role": "user", "content": "Again."}]
NO_THINK = [{"role": "system", "content": "Short. /no_think"}, *SHORT, {"role": "assistant", "content": "\n\nYes."},
            {"role": "stop", "content": "x"}, {"role": "user", "content": "never seen"}]
PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What is this? "}]}]
WRONG_TURNS = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "Weather at a place, in °C & \"wind\".",
        "parameters": {"type": "object", "properties": {
            "city": {"type": "string", "description": "<city>'s name"},
            "days": {"type": "integer", "default": 1}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {}}},
]
TOOL_CHAT = [
    {"role": "user", "content": "Weather in Paris?"},
    {"role": "assistant", "content": "", "tool_calls": [
        {"id": "call00001", "type": "function",
         "function": {"name": "get_weather", "arguments": {"city": "Paris", "days": 2, "share": 0.5, "exact": None}}}]},
    {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "{\"temp\": 21.0}"},
    {"role": "assistant", "content": "21 degrees."},
    {"role": "user", "content": "Thanks"},
]
TWO_RESULTS = TOOL_CHAT[:3] + [{"role": "tool", "tool_call_id": "call00002", "content": "second"}] + TOOL_CHAT[3:]
DATE = {"date_string": "05 Mar 2025"}

PLAIN = [(SHORT, {}), (CHAT, {}), (NO_SYSTEM, {}), (ENDS_WITH_ASSISTANT, {}), (EMPTY_CONTENT, {})]
CASES = {
    "chatml": PLAIN,
    "smollm2": PLAIN,
    "zephyr": PLAIN,
    "llama2": PLAIN + [(WRONG_TURNS, {})],
    "llama3": [(m, DATE) for m, _ in PLAIN]
              + [(TOOL_CHAT, {"tools": TOOLS, **DATE}), (SHORT, {"custom_tools": TOOLS, **DATE})],
    "mistral": PLAIN + [(WRONG_TURNS, {}), (SHORT, {"tools": TOOLS}), (TOOL_CHAT, {"tools": TOOLS}), (TWO_RESULTS, {})],
    "qwen25": PLAIN + [(TOOL_CHAT, {"tools": TOOLS}), (TWO_RESULTS, {"tools": TOOLS[1:]}), (CHAT, {"tools": []})],
    "deepseek": PLAIN + [(THINKS, {}), (TOOL_CHAT[:3], {})],
    "gemma": [(SHORT, {}), (NO_SYSTEM, {}), (PARTS, {}), (CHAT, {})],
    "smollm3": PLAIN + [(NO_THINK, {}), (SHORT, {"enable_thinking": False})],
    "python": [(CHAT, {})],
}


def escape(text):
    return "".join(chr(b) if 0x21 <= b <= 0x7E and b != 0x25 else f"%{b:02X}" for b in text.encode())


def render(source, messages, variables, add_generation_prompt, bos, eos):
    template = compile_template(source)
    named = {"tools": None, "documents": None, "bos_token": bos, "eos_token": eos, **variables}
    try:
        return "text", template.render(messages=messages, add_generation_prompt=add_generation_prompt, **named)
    except jinja2.exceptions.TemplateError as e:
        return "raises", e.message


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true")
    options = arguments.parse_args()
    lines = []
    for name, cases in CASES.items():
        source = (HERE / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
        for messages, variables in cases:
            for prompt in (False, True):
                kind, text = render(source, messages, variables, prompt, "<s>", "</s>")
                words = [name, str(int(prompt)), "<s>", "</s>", json.dumps(messages), json.dumps(variables), kind, text]
                lines.append(" ".join(map(escape, words)))
    text = "\n".join(lines) + "\n"
    if not options.check:
        (HERE / "templates.golden").write_text(text, encoding="ascii")
    elif (HERE / "templates.golden").read_text(encoding="ascii") != text:
        sys.exit("templates.golden differs from what is committed")


if __name__ == "__main__":
    main()
