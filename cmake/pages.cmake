# ts_page(LIBRARY NAME HEADER HTML): the file HTML as the constant NAME, declared in HEADER, of LIBRARY; made anew
# when the file changes.
function(ts_page library PAGE_NAME PAGE_HEADER html)
  get_filename_component(stem ${html} NAME_WE)
  set(source ${CMAKE_BINARY_DIR}/${stem}_page.cc)
  set_property(DIRECTORY ${CMAKE_SOURCE_DIR} APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${html})
  file(READ ${html} PAGE_HTML)
  configure_file(${CMAKE_SOURCE_DIR}/cmake/page.cc.in ${source} @ONLY)
  target_sources(${library} PRIVATE ${source})
endfunction()
