"""Awkward texts, as (name, bytes). The tokenizers' golden files hold their ids by position in this list."""

import codecs

# Each byte that is no part of a character is one U+FFFD.
codecs.register_error("bytewise", lambda e: ("\ufffd" * (e.end - e.start), e.end))


def as_text(data):
    """What a tokenizer of text is given for `data`."""
    return data.decode("utf-8", errors="bytewise")


TEXTS = [
    ("empty", ""),
    ("space", " "),
    ("letter", "a"),
    ("sentence", "The quick brown fox jumps over the lazy dog. It's 3 o'clock, isn't it? WE'LL see; they'Ve gone."),
    ("leading spaces", "   three before, two after  "),
    ("space runs", "a" + " " * 2 + "b" + " " * 3 + "c" + " " * 7 + "d" + " " * 64 + "e" + " " * 257 + "f"),
    ("only spaces", " " * 33),
    ("newlines", "one\ntwo\n\nthree\n\n\n\nfour\n \n  \n\tfive\n"),
    ("crlf", "one\r\ntwo\r\n\r\nthree\rfour\r\r\n \r\n\t\r\n"),
    ("tabs", "\tif x:\t\t# note\n\t\t\treturn\t1\n\t \t mixed"),
    ("odd spaces", "a\u00a0b\u2003c\u3000d\u200be\u2028f\u2029g\u0085h\u180ei\ufeffj\u1680k"),
    ("vertical", "a\x0bb\x0cc\x1cd\x1de\x1ef\x1fg"),
    ("control", "".join(map(chr, range(32))) + "\x7f" + "".join(map(chr, range(0x80, 0xa0)))),
    ("python", 'def f(x: int = 0) -> str:\n    """Doc."""\n    return f"{x!r:>{10}}" if x else None  # 100%\n'),
    ("c++", "#include <vector>\nint main() { std::vector<int> v{1,2,3}; return v[0]==1?~0u:-1; } // \\n\n"),
    ("json", '{"a": [1, 2.50, -3e+10, null, true], "b\\u00e9": "\\\\ \\" \\/"}'),
    ("html", "<!DOCTYPE html><p class='x'>&nbsp;&lt;b&gt;</p><br/><!-- no -->"),
    ("shell", "for f in *.txt; do echo \"$f: $(wc -l < \"$f\")\" | tee -a log.txt && rm -rf ./tmp/${f%.*}; done"),
    ("numbers", "0 1 12 123 1234 12345 123456 1234567890 3.14159 1,000,000 0x1F 1e-9 2024-01-31 12:59:59 v1.2.3"),
    ("other numerals", "٠١٢٣٤٥ १२३ ೧೨೩ 一二三 ⅠⅡⅢ ½⅔ ①②③ ²³¹ 𝟘𝟙𝟚 ⁴⁵"),
    ("long number", "9" * 100),
    ("punctuation", "!?.,;:'\"()[]{}<>-_=+*/\\|@#$%^&~`…—–‘’“”«»¿¡§¶†‡•‰"),
    ("punctuation runs", "!!!!! ??? ...... ---- ==== **** //// \\\\\\\\ ))))((( ;;;;; '''''' \"\"\"\"\n!!!\n\n???\r\n"),
    ("contractions", "I'm you're he's we'd they'll I've 'tis 'S'T'RE'VE'M'LL'D don'T O'Neill's rock'n'roll 's"),
    ("url", "https://example.com:8080/a/b.html?q=%20x&y=1#frag user@mail.example.org"),
    ("camel", "camelCase PascalCase snake_case SCREAMING_CASE kebab-case XMLHttpRequest iPhone15Pro"),
    ("latin", "Äpfel, façade, naïve, Ångström, Łódź, Dvořák, İstanbul ıI ŉ ǅ ﬁ ſ ẞ"),
    ("combining", "e\u0301 a\u030a n\u0303 o\u0302\u0323 \u0301alone q\u0307\u0323 Z\u0351\u036b\u0343a\u0300lgo"),
    ("composed", "\u00e9 \u00e5 \u00f1 \u1ed9 \ud55c\uae00 \u1112\u1161\u11ab\u1100\u1173\u11af \u212b \u2126"),
    ("greek", "Ἀρχή ἐν ἀρχῇ ἦν ὁ λόγος ΣΊΣΥΦΟΣ σίσυφος"),
    ("cyrillic", "Съешь же ещё этих мягких французских булок, да выпей чаю. Ѣ ҈ Ӂ"),
    ("hebrew", "בְּרֵאשִׁית בָּרָא אֱלֹהִים שלום"),
    ("arabic", "السَّلَامُ عَلَيْكُمْ ١٢٣، ﷽ ﻻ"),
    ("devanagari", "नमस्ते दुनिया, क्षत्रिय श्री ॐ"),
    ("tamil", "தமிழ் கொக்கு"),
    ("thai", "สวัสดีชาวโลก กำลัง น้ำ"),
    ("tibetan", "བོད་སྐད་ཡིག"),
    ("khmer", "ភាសាខ្មែរ"),
    ("ethiopic", "ሰላም ዓለም ፩፪፫"),
    ("chinese", "我能吞下玻璃而不伤身体。漢字簡體繁體、，「」《》！？"),
    ("japanese", "吾輩は猫である。名前はまだ無い。カタカナ ﾊﾝｶｸ ゛゜ー々〆"),
    ("korean", "다람쥐 헌 쳇바퀴에 타고파. ㄱㄴㄷ ㅏㅑㅓ"),
    ("full width", "ＡＢＣ１２３！？　（　）～"),
    ("mixed scripts", "Hello мир 世界 שלום สวัสดี 🌍 नमस्ते café naïve日本語textмешанный123абв"),
    ("emoji", "😀😃😄 ❤️ ☺ ☺️ ⌚ 🇩🇪🇫🇷🇯🇵🇺 1️⃣#️⃣*️⃣"),
    ("emoji sequences", "👨‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🧑🏿‍🤝‍🧑🏻 👁️‍🗨️ ❤️‍🔥"),
    ("joiners", "a\u200cb\u200dc\u2060d\u00ade\u034ff \u202eright\u202c \u2066iso\u2069"),
    ("plane 1", "𝒜𝓫𝔠 𐍈𐌰 𓀀𓂀 𒀀 🂡 𞤀𞤢 𝄞 𖼀 𐐀𐐨"),
    ("plane 2 and 3", "𠀀𠮷𪚥 𫝀 𫠠 𬺰 𮯠 𰀀 𱍐 \U0002ebf0 \U000323b0"),
    ("planes 4 to 14",
     "\U00040000x\U00050000 \U0006fffd\U00090000y\U000a1234 \U000d0000 \U000e0001\U000e0041\U000e01ef"),
    ("private use", "\ue000\uf8ff \U000f0000\U000ffffd \U00100000\U0010fffd"),
    ("last code points", "\ud7ff\ue000\ufffc\ufffd\ufffe\uffff\U0001fffe\U0010ffff"),
    ("first of each length", "\x01\x7f\x80\u07ff\u0800\uffff\U00010000"),
    ("nul", "a\x00b\x00\x00c"),
    ("byte names", "<0x00><0x41><0xFF> <0x0A> <0xZZ>"),
    ("space piece", "a\u2581b \u2581\u2581c\u2581"),
    ("byte alphabet", "Ġhello Ċ ĉ Ā ł ÿ Ń"),
    ("control tokens", "<|endoftext|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
    ("control tokens in words", "x<|im_end|>y <|im_end|> z<|im_end|><|im_end|>\n<|im_end|"),
    ("broken control tokens", "<|im_end|<|im_end|>|> <|im_ end|> <|IM_END|> <|<|im_start|>"),
    ("sentence marks", "<s>one</s><s> two </s> <unk>three<unk> <pad> </s"),
    ("user-defined", "<tool><tool_call>f()</tool_call> [a b] x[a b]y <tool <tool_cal>    ----"),
    ("instructions", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] More [/INST]"),
    ("repeats", "ha" * 40 + " " + "abc" * 30 + " " + "the the the" * 10),
    ("long word", "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 3),
    ("one letter", "a" * 300),
    ("marks only", "\u0301\u0301\u0301 \u093e\u094d \u20dd"),
    ("alternating", "a1b2c3 A1!B2? 1a2b.3c é1ñ2 中1文2 a\u03011"),
    ("trailing newline runs", "end.\n\n\n"),
    ("spaces before newlines", "a   \n  b \n\n   c\t\n \t d    \r\n   e"),
    ("space before punctuation", " , . ! ? : ; ( ) a , b . c !\n \"quoted\" 'single'"),
]

INVALID = [
    ("lone continuation", b"a\x80b\xbf"),
    ("lone leads", b"\xc2 \xe2 \xf0 x"),
    ("cut characters", "é€😀".encode()[:-1] + b" " + "€".encode()[:2] + b"x" + "😀".encode()[:3] + b"y"),
    ("overlong", b"\xc0\x80 \xe0\x80\x80 \xf0\x80\x80\x80"),
    ("surrogates", b"\xed\xa0\x80\xed\xb0\x80 \xed\xbf\xbf"),
    ("past the last", b"\xf4\x90\x80\x80 \xf5\x80\x80\x80 \xff\xfe"),
    ("all bytes", bytes(range(256))),
    ("invalid before control", b"\xff<|im_end|>\xe2\x82<s>\xf0\x9f"),
    ("latin-1", "Blåbärsöl och kött".encode("latin-1")),
    ("utf-16", "Hi \u00e9".encode("utf-16")),
]

CORPUS = [(name, text.encode("utf-8")) for name, text in TEXTS] + INVALID

# A small text for training the tiny vocabularies.
TRAINING = [t for _, t in TEXTS] + [
    "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, and",
    "nothing particular to interest me on shore, I thought I would sail about a little and see the watery part of",
    "the world. It is a way I have of driving off the spleen and regulating the circulation. Whenever I find myself",
    "growing grim about the mouth; whenever it is a damp, drizzly November in my soul; whenever I find myself",
    "    for (int i = 0; i < 10; ++i) {\n        printf(\"%d\\n\", i);\n    }\n",
    "Wir sind hier, um zu lernen und zu lehren. Nous sommes ici pour apprendre. Estamos aquí para aprender.",
    "Мы здесь, чтобы учиться. 我们在这里学习。私たちはここで学びます。",
]
