// What this process may use of the machine: cores (affinity and cgroup quota), memory (cgroup
// limits), and what it uses now.
#ifndef TINYSERVE_BASE_MACHINE_H_
#define TINYSERVE_BASE_MACHINE_H_

#include <cstdint>
#include <string>

namespace tinyserve {

// Cores this process may really use: its affinity mask, at most the cgroup's CPU quota rounded up;
// at least 1.
uint32_t UsableCores();

// Bytes of memory this process may use: physical memory, at most the limits of its cgroup and that
// group's parents.
uint64_t MemoryLimitBytes();

// Resident set, now and at its peak, in bytes (0 where the system does not tell).
uint64_t ResidentBytes();
uint64_t PeakResidentBytes();

// The processor's name as the system gives it.
std::string CpuName();

// The same from a directory tree that stands for "/" (tests): reads proc/self/cgroup,
// sys/fs/cgroup/..., proc/meminfo.
uint32_t CgroupCores(const std::string& root);        // 0: no quota
uint64_t CgroupMemoryBytes(const std::string& root);  // UINT64_MAX: no limit

}  // namespace tinyserve

#endif  // TINYSERVE_BASE_MACHINE_H_
