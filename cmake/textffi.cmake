# The Rust crate rust/textffi, built by cargo into a static library. Every build folder of this tree shares one target
# folder: the crate is always optimised and never instrumented, and compiling its dependencies takes minutes.
find_program(CARGO cargo PATHS $ENV{HOME}/.cargo/bin REQUIRED)
set(textffi_crate ${CMAKE_SOURCE_DIR}/rust/textffi)
set(textffi_dir ${CMAKE_SOURCE_DIR}/build/textffi)
set(textffi_lib ${textffi_dir}/release/libtextffi.a)
file(GLOB_RECURSE textffi_sources CONFIGURE_DEPENDS ${textffi_crate}/src/*.rs)
# The stamp belongs to this build folder, the library to all: where cargo finds nothing to do, nothing is linked again.
add_custom_command(
  OUTPUT ${CMAKE_BINARY_DIR}/textffi.stamp
  BYPRODUCTS ${textffi_lib}
  COMMAND ${CMAKE_COMMAND} -E env CARGO_NET_RETRY=5
          ${CARGO} build --release --locked --manifest-path ${textffi_crate}/Cargo.toml --target-dir ${textffi_dir}
  COMMAND ${CMAKE_COMMAND} -E touch ${CMAKE_BINARY_DIR}/textffi.stamp
  DEPENDS ${textffi_sources} ${textffi_crate}/Cargo.toml ${textffi_crate}/Cargo.lock
  COMMENT "Building the text crate (tokenizers, templates, grammars) with cargo"
  USES_TERMINAL VERBATIM)
add_custom_target(textffi_build DEPENDS ${CMAKE_BINARY_DIR}/textffi.stamp)
add_library(textffi INTERFACE)
add_dependencies(textffi textffi_build)
target_link_libraries(textffi INTERFACE ${textffi_lib} ${CMAKE_DL_LIBS} Threads::Threads m)
target_include_directories(textffi INTERFACE ${textffi_crate}/include)
