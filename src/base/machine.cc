#include "base/machine.h"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <sstream>
#include <vector>

namespace tinyserve {
namespace {

// First line of a small system file, empty where it cannot be read.
std::string FirstLine(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

bool ParseUint(std::string_view text, uint64_t* value) {
  while (!text.empty() && text.back() <= ' ') text.remove_suffix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size();
}

// The directories of this process's cgroup and all its parents, for one controller ("" for cgroup
// v2), innermost first.
std::vector<std::string> CgroupDirs(const std::string& root, const std::string& controller) {
  std::ifstream in(root + "/proc/self/cgroup");
  std::vector<std::string> dirs;
  for (std::string line; std::getline(in, line);) {
    // hierarchy:controllers:path
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool matches = controller.empty()
                             ? controllers == ",,"
                             : controllers.find("," + controller + ",") != std::string::npos;
    if (!matches) continue;
    const std::string mount =
        root + "/sys/fs/cgroup" + (controller.empty() ? "" : "/" + controller);
    std::string path = line.substr(second + 1);
    while (path.size() > 1) {
      dirs.push_back(mount + path);
      path.erase(path.rfind('/'));
    }
    dirs.push_back(mount);  // the root, or the group itself where a container shows it as the root
  }
  return dirs;
}

}  // namespace

uint32_t CgroupCores(const std::string& root) {
  double cores = 0;
  const auto take = [&](double quota, double period) {
    if (quota > 0 && period > 0 && (cores == 0 || quota / period < cores)) cores = quota / period;
  };
  for (const std::string& dir : CgroupDirs(root, "")) {
    std::istringstream line(FirstLine(dir + "/cpu.max"));  // "max 100000" or "150000 100000"
    double quota, period;
    if (line >> quota >> period) take(quota, period);
  }
  for (const std::string& dir : CgroupDirs(root, "cpu")) {
    uint64_t quota, period;
    if (ParseUint(FirstLine(dir + "/cpu.cfs_quota_us"), &quota) &&
        ParseUint(FirstLine(dir + "/cpu.cfs_period_us"), &period)) {
      take(static_cast<double>(quota), static_cast<double>(period));
    }
  }
  return static_cast<uint32_t>(std::ceil(cores));
}

uint64_t CgroupMemoryBytes(const std::string& root) {
  uint64_t limit = UINT64_MAX;
  uint64_t value;
  for (const std::string& dir : CgroupDirs(root, "")) {
    for (const char* name : {"/memory.max", "/memory.high"}) {
      if (ParseUint(FirstLine(dir + name), &value)) limit = std::min(limit, value);
    }
  }
  for (const std::string& dir : CgroupDirs(root, "memory")) {
    if (ParseUint(FirstLine(dir + "/memory.limit_in_bytes"), &value))
      limit = std::min(limit, value);
  }
  return limit;
}

uint32_t UsableCores() {
  cpu_set_t set;
  uint32_t cores = 1;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    cores = static_cast<uint32_t>(CPU_COUNT(&set));
  } else if (const long online = sysconf(_SC_NPROCESSORS_ONLN); online > 0) {
    cores = static_cast<uint32_t>(online);  // more CPUs than a cpu_set_t holds
  }
  const uint32_t quota = CgroupCores("");
  return std::max(1u, quota == 0 ? cores : std::min(cores, quota));
}

uint64_t MemoryLimitBytes() {
  const uint64_t physical =
      static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  return std::min(physical, CgroupMemoryBytes(""));
}

uint64_t ResidentBytes() {
  std::istringstream line(FirstLine("/proc/self/statm"));
  uint64_t total = 0, resident = 0;
  line >> total >> resident;
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

uint64_t PeakResidentBytes() {
  struct rusage usage;
  if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

std::string CpuName() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos)
      return line.substr(colon + 2);
  }
  return "unknown processor";
}

}  // namespace tinyserve
