// The emulated CUDA runtime, by what a host may do wrong with a device.
#include "kernels/cuda/runtime.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "kernels/cuda/device.h"
#include "kernels/cuda/simt.h"
#include "tests/simt/emulated_runtime.h"

namespace tinyserve::cuda {
namespace {

TS_KERNEL AddOne(Array<uint32_t> numbers) {
  const Global<uint32_t> at(numbers, "numbers");
  at.Set(ThreadIndex(), at.Get(ThreadIndex()) + 1);
}

constexpr uint32_t kCount = 32;

class Runtime : public testing::Test {
 protected:
  void SetUp() override {
    stream = *DeviceStream::Create();
    numbers = *DeviceMemory::Allocate(kCount * sizeof(uint32_t));
    pinned = *PinnedMemory::Allocate(kCount * sizeof(uint32_t));
  }
  void TearDown() override {
    simt::ReplaceDevice();
    simt::SetDeviceMemory(0);
  }
  Status AddOnes() {
    return Launch({.kernel = "AddOne", .grid = {1}, .threads = kCount, .stream = stream.handle()},
                  AddOne, Array<uint32_t>{numbers.as<uint32_t>(), kCount});
  }
  uint32_t* host() { return pinned.as<uint32_t>(); }
  uint32_t First() {
    EXPECT_TRUE(stream.CopyOut(host(), numbers, 0, numbers.size()).ok());
    EXPECT_TRUE(stream.Synchronize().ok());
    return host()[0];
  }

  DeviceStream stream;
  DeviceMemory numbers;
  PinnedMemory pinned;
};

TEST_F(Runtime, AStreamRunsWhenItIsWaitedFor) {
  ASSERT_TRUE(stream.Fill(numbers, 0).ok());
  ASSERT_TRUE(AddOnes().ok());
  const uint64_t launches = simt::Counts().launches;
  host()[0] = 77;
  ASSERT_TRUE(stream.CopyOut(host(), numbers, 0, numbers.size()).ok());
  EXPECT_EQ(host()[0], 77u);
  EXPECT_EQ(simt::Counts().launches, launches);
  ASSERT_TRUE(stream.Synchronize().ok());
  EXPECT_EQ(host()[0], 1u);
  EXPECT_EQ(host()[kCount - 1], 1u);
}

// Pinned memory is read when the copy runs, memory that is not pinned when it is asked for.
TEST_F(Runtime, PinnedMemoryIsReadLate) {
  std::vector<uint32_t> pageable(kCount, 5);
  ASSERT_TRUE(stream.CopyIn(numbers, 0, pageable.data(), numbers.size()).ok());
  pageable.assign(kCount, 6);
  EXPECT_EQ(First(), 5u);
  host()[0] = 5;
  ASSERT_TRUE(stream.CopyIn(numbers, 0, host(), numbers.size()).ok());
  host()[0] = 6;
  EXPECT_EQ(First(), 6u);
}

TEST_F(Runtime, AGraphIsRunAnewWithWhatMemoryHolds) {
  ASSERT_TRUE(stream.Fill(numbers, 0).ok());
  const auto graph = stream.Capture([&] {
    TS_RETURN_IF_ERROR(AddOnes());
    return AddOnes();
  });
  ASSERT_TRUE(graph.ok());
  EXPECT_EQ(First(), 0u);
  ASSERT_TRUE(stream.Launch(*graph).ok());
  EXPECT_EQ(First(), 2u);
  ASSERT_TRUE(stream.Fill(numbers, 0).ok());
  ASSERT_TRUE(stream.Launch(*graph).ok());
  ASSERT_TRUE(stream.Launch(*graph).ok());
  EXPECT_EQ(First(), 4u);
}

TEST_F(Runtime, WhatAGraphMayNotHoldIsRefused) {
  std::vector<uint32_t> pageable(kCount);
  const auto refused = [&](auto call) {
    const auto graph = stream.Capture([&] { return call(); });
    EXPECT_EQ(graph.status().code(), Code::kInternal) << graph.status().message();
  };
  refused([&] { return stream.Synchronize(); });
  refused([&] { return DeviceMemory::Allocate(64).status(); });
  refused([&] { return stream.CopyIn(numbers, 0, pageable.data(), numbers.size()); });
  EXPECT_TRUE(stream.Synchronize().ok());  // nothing stayed recorded
}

TEST_F(Runtime, EventsOrderStreams) {
  const DeviceStream other = *DeviceStream::Create();
  const Event filled = *Event::Create(), after = *Event::Create();
  ASSERT_TRUE(other.Fill(numbers, 0).ok());
  ASSERT_TRUE(other.Record(filled).ok());
  ASSERT_TRUE(stream.WaitFor(filled).ok());
  ASSERT_TRUE(AddOnes().ok());
  ASSERT_TRUE(stream.Record(after).ok());
  EXPECT_EQ(First(), 1u);
  EXPECT_GE(*runtime::Milliseconds(filled.handle(), after.handle()), 0.0f);
}

// Waiting for an event runs what came before it alone.
TEST_F(Runtime, EventsAreWaitedForWhileMoreIsToCome) {
  const Event event = *Event::Create();
  ASSERT_TRUE(stream.Fill(numbers, 0).ok());
  ASSERT_TRUE(stream.CopyOut(host(), numbers, 0, numbers.size()).ok());
  ASSERT_TRUE(stream.Record(event).ok());
  ASSERT_TRUE(AddOnes().ok());
  const simt::DeviceCounts before = simt::Counts();
  ASSERT_TRUE(event.Await().ok());
  EXPECT_EQ(host()[0], 0u);
  EXPECT_EQ(simt::Counts().launches, before.launches);
  EXPECT_EQ(simt::Counts().waits_ahead, before.waits_ahead + 1);
  EXPECT_EQ(First(), 1u);
  ASSERT_TRUE(event.Await().ok());
  EXPECT_EQ(simt::Counts().waits_ahead, before.waits_ahead + 1);
}

TEST_F(Runtime, MemoryOfTheDeviceIsNotTheHosts) {
  EXPECT_DEATH(numbers.as<volatile uint32_t>()[0] = 1, "");
}

TEST_F(Runtime, MemoryHasAnEnd) {
  simt::SetDeviceMemory(simt::Counts().bytes_in_use + 1000);
  const Status status = DeviceMemory::Allocate(1001).status();
  EXPECT_EQ(status.code(), Code::kOutOfMemory);
  EXPECT_NE(status.message().find("1001 bytes of device memory were asked for, 1000 are free"),
            std::string::npos)
      << status.message();
  EXPECT_TRUE(DeviceMemory::Allocate(1000).ok());
}

// As of a real device, the loss comes to light at a later call, and every one fails from then on.
TEST_F(Runtime, ALostDeviceStaysLost) {
  ASSERT_TRUE(stream.Fill(numbers, 0).ok());
  simt::LoseDeviceAt(2);
  ASSERT_TRUE(AddOnes().ok());
  ASSERT_TRUE(AddOnes().ok());
  const Status lost = stream.Synchronize();
  EXPECT_EQ(lost.code(), Code::kInternal);
  EXPECT_NE(lost.message().find("AddOne"), std::string::npos) << lost.message();
  EXPECT_FALSE(AddOnes().ok());
  EXPECT_FALSE(DeviceMemory::Allocate(64).ok());
  simt::ReplaceDevice();
  EXPECT_EQ(First(), 1u);
}

}  // namespace
}  // namespace tinyserve::cuda
