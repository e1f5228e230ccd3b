#!/usr/bin/env python3
"""Proves that the lint rules bite: each test plants one violation in a small clean tree and looks for its finding."""

import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
import rules  # noqa: E402
from cpp_source import functions_of, strip_literals  # noqa: E402

ARCHITECTURE = """
| folder | holds | may include |
|---|---|---|
| `src/base` | everyone's | – |
| `src/tensor` | data | – |
| `src/page` | contracts | tensor |
| `src/kernels` | loops | tensor, page |
| `src/engine` | requests | tensor, engine.h |
| `tools` `tests` | programs | all |
| `examples` | embedders | engine.h |
| `include/tinyserve` | public | – |
"""

HEADER = "#ifndef {guard}\n#define {guard}\n\n{body}#endif  // {guard}\n"

CLEAN = {
    "docs/ARCHITECTURE.md": ARCHITECTURE,
    "tests/lint/exceptions.txt": "",
    "include/tinyserve/engine.h": HEADER.format(guard="TINYSERVE_ENGINE_H_", body="int Serve();\n\n"),
    "src/base/check.h": HEADER.format(guard="TINYSERVE_BASE_CHECK_H_", body="int Check();\n\n"),
    "src/tensor/dtype.h": HEADER.format(guard="TINYSERVE_TENSOR_DTYPE_H_", body="#include <cstdint>\n\n"),
    "src/tensor/dtype.cc": '#include "tensor/dtype.h"\n\n#include "base/check.h"\n',
    "src/engine/engine.cc": '#include "tinyserve/engine.h"\n\n#include "tensor/dtype.h"\n',
    "src/kernels/cpu/lanes.inl": "static int Lanes() { return 8; }\n",
    "src/kernels/cpu/target_avx2.cc": '#include <immintrin.h>\n\n#include "kernels/cpu/lanes.inl"\n',
    "examples/embed.cc": '#include "tinyserve/engine.h"\n',
}


class LintTest(unittest.TestCase):
    def setUp(self):
        self.root = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.root)
        for path, text in CLEAN.items():
            self.write(path, text)
        shutil.copy(pathlib.Path(__file__).parent.parent.parent / ".clang-format", self.root)

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def findings(self, rule, build=None):
        return [str(finding) for finding in rule(rules.Tree(self.root, build))]

    def expect(self, rule, path, words):
        found = self.findings(rule)
        self.assertTrue(any(f.startswith(f"{path}:") and words in f for f in found), f"{words!r} not in {found}")

    def expect_clean(self, rule):
        self.assertEqual(self.findings(rule), [])

    def test_a_clean_tree_has_no_findings(self):
        for rule in rules.RULES:
            self.expect_clean(rule)

    def test_includes_follow_the_table(self):
        self.write("tests/support/builder.h", "")
        for path, line, words in [
            ("src/tensor/bad.cc", '#include "engine/engine.h"', "no such file"),
            ("src/tensor/bad.cc", '#include "kernels/cpu/lanes.inl"', "src/tensor may not include src/kernels"),
            ("src/tensor/bad.cc", '#include "tinyserve/engine.h"', "src/tensor may not include include/tinyserve"),
            ("src/tensor/bad.cc", "#include <tensor/dtype.h>", "with quotes"),
            ("examples/bad.cc", '#include "tensor/dtype.h"', "examples may not include src/tensor"),
            ("src/tensor/bad.cc", '#include "tests/support/builder.h"', "src/tensor may not include tests"),
            ("src/new/bad.cc", "", "has no row"),
        ]:
            with self.subTest(line):
                self.write(path, line + "\n")
                self.expect(rules.includes, path, words)
                (self.root / path).unlink()

    def test_tools_may_include_everything_and_unit_tests_the_test_support(self):
        self.write("tests/support/builder.h", "")
        self.write("src/tensor/fine_test.cc", '#include "tests/support/builder.h"\n')
        self.write("tools/fine.cc", '#include "kernels/cpu/lanes.inl"\n#include "tinyserve/engine.h"\n')
        self.expect_clean(rules.includes)

    def test_only_one_header_of_kernels_sees_their_emulation(self):
        self.write("tests/simt/emulated.h", "")
        self.write("src/kernels/cuda/simt.h", '#include "tests/simt/emulated.h"\n')
        self.expect_clean(rules.includes)
        self.write("src/kernels/cuda/bad.cu", '#include "tests/simt/emulated.h"\n')
        self.expect(rules.includes, "src/kernels/cuda/bad.cu", "src/kernels may not include tests")

    def test_a_lost_table_is_found(self):
        self.write("docs/ARCHITECTURE.md", "# No table\n")
        self.expect(rules.includes, "docs/ARCHITECTURE.md", "table is missing")

    def test_target_units_share_no_code(self):
        unit = "src/kernels/cpu/target_avx2.cc"
        self.write("src/kernels/kernels.h", "#include <vector>\n")
        for line, path, words in [("#include <vector>", unit, "<vector>"), ("#include <cmath>", unit, "<cmath>"),
                                  ('#include "base/check.h"', unit, "base/check.h"),
                                  ('#include "kernels/kernels.h"', "src/kernels/kernels.h", f"included by {unit}")]:
            with self.subTest(line):
                self.write(unit, line + "\n")
                self.expect(rules.target_units, path, words)

    @unittest.skipUnless(shutil.which("g++") and shutil.which("nm"), "needs g++ and nm")
    def test_weak_symbols_of_target_objects_are_found(self):
        unit = "src/kernels/cpu/target_avx2.cc"
        target = self.root / f"build/CMakeFiles/ts_kernels.dir/{unit}.o"
        target.parent.mkdir(parents=True)
        for text, count in [("static int F() { return 1; }\nint G() { return F(); }\n", 0),
                            ("inline int F() { return 1; }\nint (*g)() = F;\n", 1),
                            ("template <class T> T F() { return 1; }\nint G() { return F<int>(); }\n", 1)]:
            with self.subTest(text):
                self.write(unit, text)
                subprocess.run(["g++", "-O0", "-c", self.root / unit, "-o", target], check=True)
                self.assertEqual(len(self.findings(rules.target_objects, self.root / "build")), count)

    def test_a_target_unit_without_an_object_is_found(self):
        self.assertIn("has no object", self.findings(rules.target_objects, self.root / "build")[0])

    def test_long_lines(self):
        self.write("src/tensor/dtype.cc", "// " + "x" * 98 + "\n")
        self.expect(rules.line_length, "src/tensor/dtype.cc", "101 characters")
        self.write("docs/text.md", "x" * 141 + "\n")
        self.expect(rules.line_length, "docs/text.md", "141 characters")

    def test_tables_and_code_in_markdown_may_be_wide(self):
        self.write("docs/text.md", "|" + "x" * 200 + "|\n\n```\n" + "x" * 200 + "\n```\n")
        self.expect_clean(rules.line_length)

    def test_long_functions_and_files(self):
        self.write("src/tensor/dtype.cc", "int F() {\n" + "  G();\n" * 69 + "}\n")
        self.expect(rules.sizes, "src/tensor/dtype.cc", "function F has 71 lines")
        self.write("src/tensor/dtype.cc", "int a;\n" * 801)
        self.expect(rules.sizes, "src/tensor/dtype.cc", "file  has 801 lines")

    def test_exceptions_hold_at_their_exact_size_alone(self):
        self.write("src/tensor/dtype.cc", "int F() {\n" + "  G();\n" * 78 + "}\n")
        for lines, count in [(80, 0), (81, 1), (79, 2)]:
            with self.subTest(lines):
                self.write("tests/lint/exceptions.txt", f"function src/tensor/dtype.cc F {lines}  # reason\n")
                self.assertEqual(len(self.findings(rules.sizes)), count)
        self.write("src/tensor/dtype.cc", "int F() { return 1; }\n")
        self.expect(rules.sizes, "tests/lint/exceptions.txt", "remove the entry")

    def test_banned_calls(self):
        for line in ["sprintf(s, f);", "strcpy(a, b);", "int a = rand();", "system(s);", "int a = atoi(s);",
                     "int a = std::stoi(s);", "assert(a);", "std::regex r;", "T* t = new T(1);", "delete t;",
                     "throw 1;", 'std::cout << "a";', 'printf("a");', "#include <cassert>"]:
            with self.subTest(line):
                self.write("src/tensor/dtype.cc", line + "\n")
                self.expect(rules.banned, "src/tensor/dtype.cc", "is banned")

    def test_what_only_looks_banned(self):
        for line in ["static_assert(true);", "T(const T&) = delete;", "// rand() and new T", 'F("system(1)");',
                     "int a = operand(1);", "snprintf(a, 1, b);", "pool.system(1);",
                     "std::unique_ptr<T> t(new T(1));", "auto s = R\"(throw 1;)\";"]:
            with self.subTest(line):
                self.write("src/tensor/dtype.cc", line + "\n")
                self.expect_clean(rules.banned)

    def test_unit_tests_may_do_what_shipped_code_may_not(self):
        for path, count in [("src/tensor/dtype_test.cc", 0), ("src/tensor/dtype.cc", 1)]:
            with self.subTest(path):
                self.write(path, "std::regex r;\n")
                self.assertEqual(len(self.findings(rules.banned)), count)
                (self.root / path).unlink()

    def test_forbidden_words(self):
        for text in ["see /wo" "rk/main/x", "/tmp/ba" "sh_jobs", "// TO" "DO: later", "trailing "]:
            with self.subTest(text):
                self.write("docs/text.md", text + "\n")
                self.assertEqual(len(self.findings(rules.forbidden_words)), 1)

    def test_header_guards(self):
        path = "src/base/check.h"
        for text, words in [("#pragma once\n", "no include guard TINYSERVE_BASE_CHECK_H_"),
                            (CLEAN[path].replace("BASE_", "BSE_"), "no include guard TINYSERVE_BASE_CHECK_H_"),
                            (CLEAN[path].replace("#endif  // TINYSERVE_BASE_CHECK_H_", "#endif"), "does not end in"),
                            (CLEAN[path].replace("int Check", "using namespace std;\nint Check"), "using namespace")]:
            with self.subTest(words):
                self.write(path, text)
                self.expect(rules.header_guards, path, words)

    def test_one_name_is_one_type(self):
        self.write("src/tensor/a.h", "namespace tinyserve {\n\nstruct Rig final : Base {\n  struct Part {};\n};\n}\n")
        for text, clean in [("namespace tinyserve {\nclass Rig;\n}\n", True),
                            ("namespace tinyserve::cuda {\nclass Rig {};\n}\n", True),
                            ("namespace tinyserve {\nnamespace {\nclass Rig {};\n}\n}\n", True),
                            ("namespace tinyserve {\nstruct Part {};\nvoid F() {\n  struct Rig {};\n}\n}\n", True),
                            ("namespace tinyserve {\nenum class Rig : int { kA };\n}\n", False),
                            ("namespace tinyserve {\ntemplate <class T>\nclass Rig {};\n}\n", False)]:
            with self.subTest(text):
                self.write("src/tensor/b.cc", text)
                if clean:
                    self.expect_clean(rules.one_definition)
                else:
                    self.expect(rules.one_definition, "src/tensor/b.cc", "tinyserve::Rig is another type")

    def test_dead_headers_and_unregistered_scripts(self):
        self.write("src/tensor/dead.h", "")
        self.expect(rules.dead_files, "src/tensor/dead.h", "no file includes it")
        self.write("tests/golden/golden_test.py", "")
        self.expect(rules.dead_files, "tests/golden/golden_test.py", "does not register it")

    @unittest.skipUnless(shutil.which("cmake") and shutil.which("ninja") and shutil.which("g++"), "needs a build")
    def test_sources_that_no_target_compiles_and_tests_that_do_not_run(self):
        self.write("CMakeLists.txt", "cmake_minimum_required(VERSION 3.25)\n"
                                     "project(t LANGUAGES CXX)\n"
                                     "enable_testing()\n"
                                     "add_executable(run_test src/tensor/run_test.cc)\n"
                                     "add_test(NAME t COMMAND run_test)\n"
                                     "add_executable(idle_test src/tensor/idle_test.cc)\n"
                                     "add_library(ts_cuda_emulated src/tensor/emulated.cc)\n"
                                     "add_subdirectory(tests)\n")
        self.write("tests/CMakeLists.txt", "add_executable(outside ${CMAKE_SOURCE_DIR}/src/tensor/outside.cc)\n")
        for name in ("run_test", "idle_test", "lost", "outside", "emulated"):
            self.write(f"src/tensor/{name}.cc", "int main() {}\n")
        self.write("src/kernels/cuda/lost.cu", "")
        self.write("src/kernels/cuda/image.cu", "")
        self.write("src/tensor/run_test.cc", '#include "kernels/cuda/image.cu"\nint main() {}\n')
        self.write("tests/cuda/lost.cc", "")  # of builds that have CUDA
        build = self.root / "build"
        subprocess.run(["cmake", "-G", "Ninja", "-S", self.root, "-B", build], check=True, capture_output=True)
        found = "\n".join(self.findings(rules.dead_files, build))
        self.assertIn("src/tensor/lost.cc:1: no target compiles it", found)
        self.assertIn("src/tensor/idle_test.cc:1: ctest does not run its program idle_test", found)
        self.assertIn("src/kernels/cuda/lost.cu:1: no target compiles it", found)
        self.assertNotIn("src/kernels/cuda/image.cu", found)
        self.assertNotIn("/run_test.cc", found)
        self.assertNotIn("/outside.cc", found)
        self.assertNotIn("tests/cuda/lost.cc", found)
        self.write("CMakeLists.txt", "cmake_minimum_required(VERSION 3.25)\n"
                                     "project(t LANGUAGES CXX)\n"
                                     "enable_testing()\n")
        subprocess.run(["cmake", "-G", "Ninja", "-S", self.root, "-B", build], check=True, capture_output=True)
        self.assertNotIn("src/kernels/cuda/lost.cu", "\n".join(self.findings(rules.dead_files, build)))

    @unittest.skipUnless(shutil.which("clang-format"), "needs clang-format")
    def test_formatting(self):
        self.write("src/tensor/dtype.cc", "int   a ;\n")
        self.expect(rules.formatting, "src/tensor/dtype.cc", "make format")


class FunctionsTest(unittest.TestCase):
    def test_functions_are_measured_through_scopes_literals_and_initialisers(self):
        code = strip_literals('namespace a {\n'
                              'template <class T = int>\n'
                              'class Foo : public Bar<int> {\n'
                              ' public:\n'
                              '  Foo(int a = 3) : a_{a}, b_(2) {\n'
                              '    X("}{", \'}\', 1\'000);  // }\n'
                              '  }\n'
                              '  bool operator==(const Foo& o) const { return true; }\n'
                              '  static constexpr int k[] = {1, 2};\n'
                              '};\n'
                              '#define M(x) do { \\\n'
                              '    } while\n'
                              'const auto f = [](int a) { return a; };\n'
                              'TEST(A, B) {\n'
                              '  if (x) {\n'
                              '  }\n'
                              '}\n'
                              'const char* s = R"x(}})")x";\n'
                              'extern "C" {\n'
                              'int G(void) {\n'
                              '  return 1;\n'
                              '}\n'
                              '}\n'
                              '}\n')
        self.assertEqual([(f.name, f.line, f.lines) for f in functions_of(code)],
                         [("Foo", 5, 3), ("operator==", 8, 1), ("A.B", 14, 4), ("G", 20, 3)])


if __name__ == "__main__":
    unittest.main()
