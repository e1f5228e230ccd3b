# The CUDA backend (src/kernels/cuda/*.cu), for `make cuda`. Off by default: a build without it needs no CUDA compiler,
# and says at run time that it has none.
option(TINYSERVE_CUDA "Build the CUDA backend (needs nvcc 13: scripts/fetch-nvcc.sh)" OFF)
if(TINYSERVE_CUDA)
  # Machine code for the generations below, and PTX of the last for what comes after them.
  set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)  # the program also starts where no CUDA is installed
  enable_language(CUDA)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)  # CMake 3.25 does not know it yet
  if(NOT CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13)
    message(FATAL_ERROR "nvcc is ${CMAKE_CUDA_COMPILER_VERSION}: at least 13 is needed (scripts/fetch-nvcc.sh)")
  endif()
  # Beside nvcc where it is fetched; a toolkit that the machine has brings its own.
  get_filename_component(ts_cuda_bin ${CMAKE_CUDA_COMPILER} DIRECTORY)
  find_library(CUDART_STATIC cudart_static HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} REQUIRED)
  find_program(CUOBJDUMP cuobjdump HINTS ${ts_cuda_bin})
endif()

# ts_cuda(LIBRARY): compiles the kernels into LIBRARY.
function(ts_cuda library)
  if(NOT TINYSERVE_CUDA)
    return()
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/kernels/cuda/*.cu)
  target_sources(${library} PRIVATE ${sources})
  # As on the host: a multiply and an add are fused where the source says so, and nowhere else.
  set(host -Wall,-Wextra,-Werror,-Wshadow,-Wno-missing-field-initializers,-Wno-restrict,-ffp-contract=off)
  target_compile_options(${library} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:-fmad=false;-Xcompiler=${host}>")
  # What the kernels are compiled for, in words (CMAKE_CUDA_ARCHITECTURES).
  set_property(SOURCE ${CMAKE_SOURCE_DIR}/src/kernels/cuda/runtime.cc APPEND PROPERTY
    COMPILE_DEFINITIONS "TINYSERVE_CUDA=\"sm_80, sm_86, sm_89, sm_90, PTX\"")
  target_link_libraries(${library} PUBLIC ${CUDART_STATIC} Threads::Threads ${CMAKE_DL_LIBS} rt)
  target_include_directories(${library} SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
endfunction()
