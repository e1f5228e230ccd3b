# The Rust crate rust/textffi, built by cargo into a static library.
find_program(CARGO cargo HINTS $ENV{HOME}/.cargo/bin REQUIRED)
set(textffi_dir ${CMAKE_BINARY_DIR}/textffi)
set(textffi_lib ${textffi_dir}/release/libtextffi.a)
file(GLOB_RECURSE textffi_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/rust/textffi/src/*.rs)
add_custom_command(
  OUTPUT ${textffi_lib}
  COMMAND ${CARGO} build --release --locked --quiet --manifest-path ${CMAKE_SOURCE_DIR}/rust/textffi/Cargo.toml --target-dir ${textffi_dir}
  DEPENDS ${textffi_sources} ${CMAKE_SOURCE_DIR}/rust/textffi/Cargo.toml ${CMAKE_SOURCE_DIR}/rust/textffi/Cargo.lock
  COMMENT "Building the text crate (tokenizers, minijinja) with cargo"
  USES_TERMINAL VERBATIM)
add_custom_target(textffi_build DEPENDS ${textffi_lib})
add_library(textffi INTERFACE)
add_dependencies(textffi textffi_build)
target_link_libraries(textffi INTERFACE ${textffi_lib} ${CMAKE_DL_LIBS} Threads::Threads m)
target_include_directories(textffi INTERFACE ${CMAKE_SOURCE_DIR}/rust/textffi/include)
