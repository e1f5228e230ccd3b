// The dashboard: one page without anything from elsewhere.
#ifndef TINYSERVE_SERVER_DASHBOARD_H_
#define TINYSERVE_SERVER_DASHBOARD_H_

#include <string_view>

namespace tinyserve {

// src/server/dashboard.html, built into the program.
extern const std::string_view kDashboardPage;

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_DASHBOARD_H_
