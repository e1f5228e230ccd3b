#include "kernels/cuda/device.h"

#include <gtest/gtest.h>

#include <cstring>
#include <utility>
#include <vector>

namespace tinyserve::cuda {
namespace {

using Kind = DeviceName::Kind;

TEST(DeviceName, IsReadAsWritten) {
  for (const auto& [text, kind, index] : {std::tuple{"", Kind::kAuto, 0u},
                                          {"auto", Kind::kAuto, 0u},
                                          {"cpu", Kind::kCpu, 0u},
                                          {"cuda", Kind::kCuda, 0u},
                                          {"cuda:0", Kind::kCuda, 0u},
                                          {"cuda:15", Kind::kCuda, 15u}}) {
    const auto name = ParseDeviceName(text);
    ASSERT_TRUE(name.ok()) << text;
    EXPECT_EQ(name->kind, kind) << text;
    EXPECT_EQ(name->index, index) << text;
  }
}

TEST(DeviceName, OfAnotherFormIsRefusedWithWhatIsAllowed) {
  for (const char* text : {"gpu", "CUDA", "cuda:", "cuda:-1", "cuda:1x", "cuda: 1",
                           "cuda:4294967296", "cuda:1024", "cuda0", "cpu:0"}) {
    const auto name = ParseDeviceName(text);
    ASSERT_FALSE(name.ok()) << text;
    EXPECT_EQ(name.status().code(), Code::kInvalidArgument);
    EXPECT_EQ(name.status().message(),
              "device is '" + std::string(text) + "': allowed are auto, cpu, cuda and cuda:N");
  }
}

TEST(Device, TheEngineTakesTheCpuAndSaysWhyItRefusesCuda) {
  EXPECT_TRUE(CheckEngineDevice("").ok());
  EXPECT_TRUE(CheckEngineDevice("auto").ok());
  EXPECT_TRUE(CheckEngineDevice("cpu").ok());
  EXPECT_EQ(CheckEngineDevice("tpu").code(), Code::kInvalidArgument);
  const Status refused = CheckEngineDevice("cuda:0");
  EXPECT_EQ(refused.code(), Code::kUnsupported);
  if (runtime::Built().empty()) {
    EXPECT_EQ(refused.message(),
              "device cuda:0: this program was built without CUDA (`make cuda` builds one)");
    EXPECT_EQ(DescribeDevices(), "no CUDA");
  } else if (!runtime::ListDevices().ok()) {
    EXPECT_TRUE(refused.message().find("driver") != std::string::npos) << refused.message();
    EXPECT_TRUE(DescribeDevices().find("driver") != std::string::npos) << DescribeDevices();
  }
}

int released = 0;
void Count(void*) { ++released; }

TEST(Device, WhatIsOwnedIsReleasedOnce) {
  released = 0;
  int things[2];
  {
    Owned<Count> a(&things[0]), b(std::move(a)), none;
    EXPECT_EQ(a.get(), nullptr);
    EXPECT_EQ(b.get(), &things[0]);
    Owned<Count> c(&things[1]);
    c = std::move(b);
    EXPECT_EQ(c.get(), &things[0]);
  }
  EXPECT_EQ(released, 2);
}

#define SKIP_WITHOUT_GPU()                                          \
  if (const Status status = FindDevice(0).status(); !status.ok()) { \
    EXPECT_EQ(status.code(), Code::kUnsupported);                   \
    GTEST_SKIP() << status.message();                               \
  }

TEST(Device, BytesComeBackFromIt) {
  SKIP_WITHOUT_GPU();
  ASSERT_TRUE(runtime::UseDevice(0).ok());
  auto stream = DeviceStream::Create();
  auto memory = DeviceMemory::Allocate(1 << 20);
  auto from = Event::Create(), to = Event::Create();
  ASSERT_TRUE(stream.ok() && memory.ok() && from.ok() && to.ok());
  std::vector<uint8_t> sent(4096), received(8192);
  for (size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<uint8_t>(i * 7);
  ASSERT_TRUE(stream->Fill(*memory, 0xa5).ok());
  ASSERT_TRUE(stream->Record(*from).ok());
  auto graph =
      stream->Capture([&] { return stream->CopyIn(*memory, 4096, sent.data(), sent.size()); });
  ASSERT_TRUE(graph.ok()) << graph.status().message();
  ASSERT_TRUE(stream->Launch(*graph).ok());
  ASSERT_TRUE(stream->Record(*to).ok());
  ASSERT_TRUE(stream->CopyOut(received.data(), *memory, 0, received.size()).ok());
  ASSERT_TRUE(stream->Synchronize().ok());
  EXPECT_EQ(received[4095], 0xa5);
  EXPECT_EQ(std::memcmp(received.data() + 4096, sent.data(), sent.size()), 0);
  EXPECT_GE(*runtime::Milliseconds(from->handle(), to->handle()), 0.0f);
}

TEST(Device, MoreMemoryThanThereIsIsRefusedAndTheDeviceGoesOn) {
  SKIP_WITHOUT_GPU();
  ASSERT_TRUE(runtime::UseDevice(0).ok());
  const auto memory = DeviceMemory::Allocate(uint64_t{1} << 50);
  ASSERT_FALSE(memory.ok());
  EXPECT_EQ(memory.status().code(), Code::kOutOfMemory);
  EXPECT_TRUE(DeviceMemory::Allocate(1 << 20).ok());
}

}  // namespace
}  // namespace tinyserve::cuda
