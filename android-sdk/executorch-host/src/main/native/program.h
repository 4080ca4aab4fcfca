// One .pte file on the ExecuTorch runtime that lies inside the executorch Python wheel. No interpreter is started.
#pragma once

#include <executorch/runtime/core/data_loader.h>
#include <executorch/runtime/core/evalue.h>
#include <executorch/runtime/core/memory_allocator.h>
#include <executorch/runtime/executor/program.h>

#include <cstdint>
#include <cstdlib>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace chainfed {

namespace runtime = executorch::runtime;

// As Module.LOAD_MODE_*: the file is read, mapped, or mapped and locked into memory.
enum class LoadMode { kFile = 0, kMap = 1, kLock = 2, kTryLock = 3 };

// The whole file, in memory.
class File final : public runtime::DataLoader {
 public:
  static std::unique_ptr<File> open(const std::string& path, LoadMode mode, runtime::Error* error);
  ~File() override;

  runtime::Result<runtime::FreeableBuffer> load(size_t offset, size_t size, const SegmentInfo&) const override;
  runtime::Error load_into(size_t offset, size_t size, const SegmentInfo&, void* buffer) const override;
  runtime::Result<size_t> size() const override { return size_; }

 private:
  File(uint8_t* data, size_t size, bool mapped) : data_(data), size_(size), mapped_(mapped) {}
  bool holds(size_t offset, size_t size) const { return offset <= size_ && size <= size_ - offset; }

  uint8_t* data_;
  size_t size_;
  bool mapped_;
};

// Memory that grows by the block and is freed as a whole.
class Blocks final : public runtime::MemoryAllocator {
 public:
  Blocks() : MemoryAllocator(0, nullptr) {}
  ~Blocks() override { free_all(); }

  void* allocate(size_t size, size_t alignment = kDefaultAlignment) override;
  void reset() override { free_all(); }

 private:
  void free_all();

  std::vector<void*> blocks_;
};

// What Kotlin's Arguments object writes: a tensor that lies in a direct buffer, or a scalar.
struct Argument {
  runtime::Tag tag = runtime::Tag::None;
  executorch::aten::ScalarType dtype = executorch::aten::ScalarType::Float;
  std::vector<executorch::aten::SizesType> sizes;
  void* data = nullptr;
  int64_t integer = 0;
  double real = 0;
};

class Program {
 public:
  // Null, and the runtime's error code, when the file is none that the runtime can load.
  static std::unique_ptr<Program> load(const std::string& path, LoadMode mode, int threads, runtime::Error* error);

  std::vector<std::string> methods() const;
  std::set<std::string> backends(const std::string& method) const;
  runtime::Error load_method(const std::string& method);
  runtime::Error execute(const std::string& method, const std::vector<Argument>& arguments);

  // Of the last execute(): tensors lie in the arena, which the next one writes over.
  std::vector<runtime::EValue> outputs(const std::string& method) const;

 private:
  // The arena and everything else that one method allocates.
  struct Loaded {
    std::list<std::unique_ptr<uint8_t, decltype(&std::free)>> arenas;
    std::vector<runtime::Span<uint8_t>> spans;
    Blocks structures, temporaries;
    std::unique_ptr<runtime::HierarchicalAllocator> planned;
    std::unique_ptr<runtime::MemoryManager> memory;
    std::unique_ptr<runtime::Method> method;  // last: it is destroyed before what it lies in
  };

  Program(std::unique_ptr<File> file, runtime::Program program, int threads)
      : file_(std::move(file)), program_(std::move(program)), threads_(threads) {}

  std::unique_ptr<File> file_;
  runtime::Program program_;
  int threads_;
  std::map<std::string, std::unique_ptr<Loaded>> loaded_;
};

// What the runtime logged as errors in this thread since its last load(), load_method() or execute() began.
const std::vector<std::string>& logged_errors();

// Once in a process, before anything else.
void initialize();

}  // namespace chainfed
