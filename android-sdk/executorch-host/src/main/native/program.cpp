#include "program.h"

#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>
#include <malloc.h>

#include <algorithm>
#include <thread>

// The wheel's threadpool.h needs a header that it lacks; of torch one function is wanted.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool
namespace at {
void set_num_threads(int threads);
}

namespace chainfed {

using runtime::Error;
using runtime::EValue;
using runtime::Tag;

namespace {

constexpr int kReturnedBytes = 1 << 20;
constexpr size_t kMaxRank = 16;

thread_local std::vector<std::string> errors;

void log_message(et_timestamp_t, et_pal_log_level_t level, const char* file, const char*, size_t line,
                 const char* message, size_t) {
  if (level == et_pal_log_level_t::kError || level == et_pal_log_level_t::kFatal) {
    errors.push_back(std::string(file) + ":" + std::to_string(line) + " " + message);
  }
}

// torch's kernels keep their count for each thread, ExecuTorch's pool is the process's.
void use_threads(int threads) {
  thread_local int torch_threads = 0;
  if (threads > 0 && threads != torch_threads) {
    at::set_num_threads(threads);
    torch_threads = threads;
  }
}

EValue scalar(const Argument& argument) {
  switch (argument.tag) {
    case Tag::Int:
      return EValue(argument.integer);
    case Tag::Double:
      return EValue(argument.real);
    case Tag::Bool:
      return EValue(argument.integer != 0);
    default:
      return EValue();
  }
}

Error set_tensor(runtime::Method& method, const Argument& argument, size_t index) {
  const size_t rank = argument.sizes.size();
  if (rank > kMaxRank) {
    return Error::InvalidArgument;
  }
  auto sizes = argument.sizes;
  executorch::aten::StridesType strides[kMaxRank];
  executorch::aten::DimOrderType order[kMaxRank];
  executorch::aten::StridesType stride = 1;
  for (size_t left = rank; left > 0; left--) {
    const size_t dimension = left - 1;
    order[dimension] = static_cast<executorch::aten::DimOrderType>(dimension);
    strides[dimension] = stride;
    stride *= sizes[dimension];
  }
  if (stride != 0 && argument.data == nullptr) {
    return Error::InvalidArgument;
  }
  executorch::aten::TensorImpl tensor(argument.dtype, static_cast<ssize_t>(rank), sizes.data(), argument.data, order,
                                      strides);
  return method.set_input(EValue(executorch::aten::Tensor(&tensor)), index);
}

}  // namespace

const std::vector<std::string>& logged_errors() { return errors; }

void initialize() {
  // Blocks of 1 MiB and more go back to the system when they are freed, as runtime/chainfed/runtime/memory.py has it.
  mallopt(M_MMAP_THRESHOLD, kReturnedBytes);
  runtime::runtime_init();
  // register_pal() would print that the wheel's Python module has registered its own before.
  const_cast<runtime::PalImpl*>(runtime::get_pal_impl())->emit_log_message = log_message;
}

void* Blocks::allocate(size_t size, size_t alignment) {
  void* block = nullptr;
  if (posix_memalign(&block, std::max(alignment, sizeof(void*)), std::max<size_t>(size, 1)) != 0) {
    return nullptr;
  }
  blocks_.push_back(block);
  return block;
}

void Blocks::free_all() {
  for (void* block : blocks_) {
    std::free(block);
  }
  blocks_.clear();
}

std::unique_ptr<Program> Program::load(const std::string& path, LoadMode mode, int threads, Error* error) {
  errors.clear();
  auto file = File::open(path, mode, error);
  if (file == nullptr) {
    return nullptr;
  }
  auto program = runtime::Program::load(file.get(), runtime::Program::Verification::InternalConsistency);
  *error = program.error();
  if (!program.ok()) {
    return nullptr;
  }
  // 0 is the official layer's default: half the processors.
  const int count = threads != 0 ? threads : static_cast<int>(std::thread::hardware_concurrency() / 2);
  auto* pool = executorch::extension::threadpool::get_threadpool();
  if (pool != nullptr && count > 0) {
    pool->_unsafe_reset_threadpool(static_cast<uint32_t>(count));
  }
  return std::unique_ptr<Program>(new Program(std::move(file), std::move(*program), count));
}

std::vector<std::string> Program::methods() const {
  std::vector<std::string> names;
  for (size_t index = 0; index < program_.num_methods(); index++) {
    auto name = program_.get_method_name(index);
    if (name.ok()) {
      names.emplace_back(*name);
    }
  }
  return names;
}

std::set<std::string> Program::backends(const std::string& method) const {
  std::set<std::string> names;
  auto meta = program_.method_meta(method.c_str());
  for (size_t index = 0; meta.ok() && index < meta->num_backends(); index++) {
    auto name = meta->get_backend_name(index);
    if (name.ok()) {
      names.emplace(*name);
    }
  }
  return names;
}

Error Program::load_method(const std::string& method) {
  errors.clear();
  if (loaded_.count(method) != 0) {
    return Error::Ok;
  }
  use_threads(threads_);
  auto meta = program_.method_meta(method.c_str());
  if (!meta.ok()) {
    return meta.error();
  }
  auto loaded = std::make_unique<Loaded>();
  for (size_t index = 0; index < meta->num_memory_planned_buffers(); index++) {
    auto size = meta->memory_planned_buffer_size(index);
    if (!size.ok()) {
      return size.error();
    }
    // Zeroed by the system, page by page as it is used.
    auto* arena = static_cast<uint8_t*>(std::calloc(std::max<int64_t>(*size, 1), 1));
    if (arena == nullptr) {
      return Error::MemoryAllocationFailed;
    }
    loaded->arenas.emplace_back(arena, &std::free);
    loaded->spans.emplace_back(arena, static_cast<size_t>(*size));
  }
  loaded->planned = std::make_unique<runtime::HierarchicalAllocator>(
      runtime::Span<runtime::Span<uint8_t>>(loaded->spans.data(), loaded->spans.size()));
  loaded->memory =
      std::make_unique<runtime::MemoryManager>(&loaded->structures, loaded->planned.get(), &loaded->temporaries);
  auto result = program_.load_method(method.c_str(), loaded->memory.get());
  if (!result.ok()) {
    return result.error();
  }
  loaded->method = std::make_unique<runtime::Method>(std::move(*result));
  loaded_[method] = std::move(loaded);
  return Error::Ok;
}

Error Program::execute(const std::string& name, const std::vector<Argument>& arguments) {
  Error error = load_method(name);
  if (error != Error::Ok) {
    return error;
  }
  use_threads(threads_);
  runtime::Method& method = *loaded_.at(name)->method;
  if (arguments.size() != method.inputs_size()) {
    return Error::InvalidArgument;
  }
  for (size_t index = 0; index < arguments.size(); index++) {
    const Argument& argument = arguments[index];
    error = argument.tag == Tag::Tensor ? set_tensor(method, argument, index)
                                        : method.set_input(scalar(argument), index);
    if (error != Error::Ok) {
      return error;
    }
  }
  for (size_t index = 0; index < method.outputs_size(); index++) {
    const EValue& output = method.get_output(index);
    // An output that the program does not plan has no memory: no caller of this API can give it any.
    if (output.isTensor() && output.toTensor().nbytes() != 0 && output.toTensor().const_data_ptr() == nullptr) {
      return Error::InvalidState;
    }
  }
  return method.execute();
}

std::vector<EValue> Program::outputs(const std::string& name) const {
  std::vector<EValue> values;
  const runtime::Method& method = *loaded_.at(name)->method;
  for (size_t index = 0; index < method.outputs_size(); index++) {
    values.push_back(method.get_output(index));
  }
  return values;
}

}  // namespace chainfed
