#include "program.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

namespace chainfed {

using runtime::Error;

namespace {

uint8_t* read_whole(int descriptor, size_t size) {
  auto* data = static_cast<uint8_t*>(std::malloc(size));
  for (size_t have = 0; data != nullptr && have < size;) {
    const ssize_t count = pread(descriptor, data + have, size - have, static_cast<off_t>(have));
    if (count <= 0) {
      std::free(data);
      return nullptr;
    }
    have += static_cast<size_t>(count);
  }
  return data;
}

uint8_t* map_whole(int descriptor, size_t size, LoadMode mode) {
  void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  if (data == MAP_FAILED) {
    return nullptr;
  }
  const bool lock = mode == LoadMode::kLock || mode == LoadMode::kTryLock;
  if (lock && mlock(data, size) != 0 && mode == LoadMode::kLock) {
    munmap(data, size);
    return nullptr;
  }
  return static_cast<uint8_t*>(data);
}

}  // namespace

std::unique_ptr<File> File::open(const std::string& path, LoadMode mode, Error* error) {
  *error = Error::AccessFailed;
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    return nullptr;
  }
  std::unique_ptr<File> file;
  struct stat status;
  if (fstat(descriptor, &status) == 0 && status.st_size == 0) {
    *error = Error::InvalidProgram;
  } else if (status.st_size > 0) {
    const auto size = static_cast<size_t>(status.st_size);
    const bool mapped = mode != LoadMode::kFile;
    uint8_t* data = mapped ? map_whole(descriptor, size, mode) : read_whole(descriptor, size);
    if (data != nullptr) {
      file.reset(new File(data, size, mapped));
      *error = Error::Ok;
    }
  }
  close(descriptor);
  return file;
}

File::~File() {
  if (mapped_) {
    munmap(data_, size_);
  } else {
    std::free(data_);
  }
}

runtime::Result<runtime::FreeableBuffer> File::load(size_t offset, size_t size, const SegmentInfo&) const {
  if (!holds(offset, size)) {
    return Error::InvalidArgument;
  }
  return runtime::FreeableBuffer(data_ + offset, size, nullptr);
}

Error File::load_into(size_t offset, size_t size, const SegmentInfo&, void* buffer) const {
  if (!holds(offset, size)) {
    return Error::InvalidArgument;
  }
  std::memcpy(buffer, data_ + offset, size);
  return Error::Ok;
}

}  // namespace chainfed
