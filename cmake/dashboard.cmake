# The dashboard's page as a constant of the program: src/server/dashboard.html, which is made anew when it changes.
set(dashboard_html ${CMAKE_SOURCE_DIR}/src/server/dashboard.html)
set(dashboard_source ${CMAKE_BINARY_DIR}/dashboard_page.cc)
set_property(DIRECTORY ${CMAKE_SOURCE_DIR} APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${dashboard_html})
file(READ ${dashboard_html} DASHBOARD_HTML)
configure_file(${CMAKE_SOURCE_DIR}/cmake/dashboard_page.cc.in ${dashboard_source} @ONLY)
target_sources(ts_server PRIVATE ${dashboard_source})
