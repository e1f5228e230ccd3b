#include "kernels/targets.h"

#include <cpuid.h>

#include <cstdint>
#include <cstdlib>

#include "kernels/tables.h"

namespace tinyserve {
namespace {

// What a target may ask of the CPU and of the operating system (which must save the wide
// registers).
enum Feature : uint32_t {
  kAvx2 = 1u << 0,
  kFma = 1u << 1,
  kF16c = 1u << 2,
  kBmi2 = 1u << 3,
  kAvxVnni = 1u << 4,
  kAvx512F = 1u << 5,
  kAvx512Bw = 1u << 6,
  kAvx512Dq = 1u << 7,
  kAvx512Vl = 1u << 8,
  kAvx512Vnni = 1u << 9,
  kAvx512Bf16 = 1u << 10,
  kOsYmm = 1u << 11,
  kOsZmm = 1u << 12,
};

struct FeatureName {
  Feature feature;
  const char* name;
};
constexpr FeatureName kFeatureNames[] = {
    {kAvx2, "AVX2"},
    {kFma, "FMA"},
    {kF16c, "F16C"},
    {kBmi2, "BMI2"},
    {kAvxVnni, "AVX-VNNI"},
    {kAvx512F, "AVX-512 F"},
    {kAvx512Bw, "AVX-512 BW"},
    {kAvx512Dq, "AVX-512 DQ"},
    {kAvx512Vl, "AVX-512 VL"},
    {kAvx512Vnni, "AVX-512 VNNI"},
    {kAvx512Bf16, "AVX-512 BF16"},
    {kOsYmm, "256-bit registers enabled by the operating system"},
    {kOsZmm, "512-bit registers enabled by the operating system"},
};

constexpr uint32_t kNeedAvx2 = kAvx2 | kFma | kF16c | kBmi2 | kOsYmm;
constexpr uint32_t kNeedAvx512 = kNeedAvx2 | kAvx512F | kAvx512Bw | kAvx512Dq | kAvx512Vl | kOsZmm;

struct Target {
  const Kernels* (*table)();
  uint32_t needs;
};
// Best first. AVX-VNNI stands behind AVX-512 VNNI: the same dot instruction at half the width.
constexpr Target kTargets[] = {
    {Avx512Bf16Kernels, kNeedAvx512 | kAvx512Vnni | kAvx512Bf16},
    {Avx512VnniKernels, kNeedAvx512 | kAvx512Vnni},
    {AvxVnniKernels, kNeedAvx2 | kAvxVnni},
    {Avx512Kernels, kNeedAvx512},
    {Avx2Kernels, kNeedAvx2},
    {RefKernels, 0},
};

uint32_t OsFeatures() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr uint32_t kYmmState = 0x06, kZmmState = 0xe6;
  uint32_t found = 0;
  if ((low & kYmmState) == kYmmState) found |= kOsYmm;
  if ((low & kZmmState) == kZmmState) found |= kOsZmm;
  return found;
}

uint32_t CpuFeatures() {
  uint32_t a, b, c, d, found = 0;
  const auto add = [&found](uint32_t reg, int bit, Feature feature) {
    if (reg >> bit & 1) found |= feature;
  };
  if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
  add(c, 12, kFma);
  add(c, 29, kF16c);
  if (c >> 27 & 1) found |= OsFeatures();  // OSXSAVE: xgetbv may be executed
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  const uint32_t subleaf_max = a;
  add(b, 5, kAvx2);
  add(b, 8, kBmi2);
  add(b, 16, kAvx512F);
  add(b, 17, kAvx512Dq);
  add(b, 30, kAvx512Bw);
  add(b, 31, kAvx512Vl);
  add(c, 11, kAvx512Vnni);
  if (subleaf_max < 1 || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return found;
  add(a, 4, kAvxVnni);
  add(a, 5, kAvx512Bf16);
  return found;
}

std::string NamesOf(uint32_t features) {
  std::string names;
  for (const FeatureName& f : kFeatureNames) {
    if ((features & f.feature) == 0) continue;
    if (!names.empty()) names += ", ";
    names += f.name;
  }
  return names;
}

std::string ListTargets() {
  std::string list;
  for (const std::string& name : CompiledTargets()) {
    if (!list.empty()) list += ", ";
    list += name;
  }
  return list;
}

}  // namespace

std::vector<const Kernels*> AvailableTargets() {
  const uint32_t have = CpuFeatures();
  std::vector<const Kernels*> tables;
  for (const Target& target : kTargets) {
    if ((target.needs & ~have) == 0) tables.push_back(target.table());
  }
  return tables;
}

std::vector<std::string> CompiledTargets() {
  std::vector<std::string> names;
  for (const Target& target : kTargets) names.push_back(target.table()->name);
  return names;
}

Result<const Kernels*> TargetFor(const std::string& name) {
  std::string wanted = name;
  std::string source = "target";
  if (wanted.empty()) {
    if (const char* variable = std::getenv("TINYSERVE_TARGET")) {
      wanted = variable;
      source = "TINYSERVE_TARGET";
    }
  }
  if (wanted.empty()) return AvailableTargets().front();
  for (const Target& target : kTargets) {
    if (wanted != target.table()->name) continue;
    const uint32_t missing = target.needs & ~CpuFeatures();
    if (missing == 0) return target.table();
    return Status(Code::kUnsupported,
                  source + " \"" + wanted + "\": this machine lacks " + NamesOf(missing));
  }
  return Status(Code::kInvalidArgument,
                source + " \"" + wanted + "\" is unknown; known targets: " + ListTargets());
}

}  // namespace tinyserve
