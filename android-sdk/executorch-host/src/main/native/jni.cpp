// The natives of ai.chainfed.executorch.NativeRuntime.
#include "program.h"

#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/kernel/operator_registry.h>
#include <jni.h>

#include <cstring>

namespace {

using chainfed::Argument;
using chainfed::Program;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::Tag;

// The type codes of org.pytorch.executorch.EValue.
enum Kind : jlong { kNone = 0, kTensor = 1, kString = 2, kDouble = 3, kInt = 4, kBool = 5 };

Program& program_of(jlong handle) { return *reinterpret_cast<Program*>(handle); }

std::string text_of(JNIEnv* env, jstring text) {
  const char* characters = env->GetStringUTFChars(text, nullptr);
  std::string copy = characters == nullptr ? "" : characters;
  env->ReleaseStringUTFChars(text, characters);
  return copy;
}

template <typename Texts>
jobjectArray java_texts(JNIEnv* env, const Texts& texts) {
  jclass text_class = env->FindClass("java/lang/String");
  jobjectArray array = env->NewObjectArray(static_cast<jsize>(texts.size()), text_class, nullptr);
  jsize index = 0;
  for (const std::string& text : texts) {
    jstring element = array == nullptr ? nullptr : env->NewStringUTF(text.c_str());
    if (element == nullptr) {
      return nullptr;
    }
    env->SetObjectArrayElement(array, index++, element);
    env->DeleteLocalRef(element);
  }
  return array;
}

// Reads one argument at `word` and moves it on; false when its kind is none that a program takes.
bool read_argument(const std::vector<jlong>& words, size_t& word, void* data, Argument& argument) {
  switch (words[word++]) {
    case kTensor: {
      argument.tag = Tag::Tensor;
      argument.dtype = static_cast<executorch::aten::ScalarType>(words[word++]);
      const auto rank = static_cast<size_t>(words[word++]);
      argument.sizes.assign(words.begin() + word, words.begin() + word + rank);
      argument.data = data;
      word += rank;
      return true;
    }
    case kDouble:
      argument.tag = Tag::Double;
      std::memcpy(&argument.real, &words[word++], sizeof(double));
      return true;
    case kInt:
      argument.tag = Tag::Int;
      argument.integer = words[word++];
      return true;
    case kBool:
      argument.tag = Tag::Bool;
      argument.integer = words[word++];
      return true;
    default:
      return false;
  }
}

void write_output(const EValue& value, std::vector<jlong>& words) {
  if (value.isTensor()) {
    const auto& tensor = value.toTensor();
    words.insert(words.end(), {kTensor, static_cast<jlong>(tensor.scalar_type()), tensor.dim()});
    words.insert(words.end(), tensor.sizes().begin(), tensor.sizes().end());
  } else if (value.isDouble()) {
    const double real = value.toDouble();
    jlong bits;
    std::memcpy(&bits, &real, sizeof bits);
    words.insert(words.end(), {kDouble, bits});
  } else if (value.isInt()) {
    words.insert(words.end(), {kInt, value.toInt()});
  } else if (value.isBool()) {
    words.insert(words.end(), {kBool, value.toBool() ? 1 : 0});
  } else {
    words.push_back(value.isNone() ? kNone : kString);
  }
}

}  // namespace

#define NATIVE(result, name) extern "C" JNIEXPORT result JNICALL Java_ai_chainfed_executorch_NativeRuntime_##name

extern "C" JNIEXPORT jint JNICALL JNI_OnLoad(JavaVM*, void*) {
  chainfed::initialize();
  return JNI_VERSION_1_8;
}

// A handle, or the runtime's error code below zero.
NATIVE(jlong, load)(JNIEnv* env, jclass, jstring path, jint mode, jint threads) {
  // Another mode is taken for mapping, as the official layer does.
  const bool known = mode >= 0 && mode <= static_cast<jint>(chainfed::LoadMode::kTryLock);
  const auto load_mode = known ? static_cast<chainfed::LoadMode>(mode) : chainfed::LoadMode::kMap;
  Error error = Error::Ok;
  auto program = Program::load(text_of(env, path), load_mode, threads, &error);
  return program == nullptr ? -static_cast<jlong>(error) : reinterpret_cast<jlong>(program.release());
}

NATIVE(void, free)(JNIEnv*, jclass, jlong handle) { delete &program_of(handle); }

NATIVE(jobjectArray, methods)(JNIEnv* env, jclass, jlong handle) {
  return java_texts(env, program_of(handle).methods());
}

NATIVE(jobjectArray, backends)(JNIEnv* env, jclass, jlong handle, jstring method) {
  return java_texts(env, program_of(handle).backends(text_of(env, method)));
}

NATIVE(jint, loadMethod)(JNIEnv* env, jclass, jlong handle, jstring method) {
  return static_cast<jint>(program_of(handle).load_method(text_of(env, method)));
}

NATIVE(jint, execute)(JNIEnv* env, jclass, jlong handle, jstring method, jlongArray encoded, jobjectArray buffers) {
  std::vector<jlong> words(static_cast<size_t>(env->GetArrayLength(encoded)));
  env->GetLongArrayRegion(encoded, 0, static_cast<jsize>(words.size()), words.data());
  std::vector<Argument> arguments(static_cast<size_t>(env->GetArrayLength(buffers)));
  size_t word = 0;
  for (size_t index = 0; index < arguments.size(); index++) {
    jobject buffer = env->GetObjectArrayElement(buffers, static_cast<jsize>(index));
    void* data = buffer == nullptr ? nullptr : env->GetDirectBufferAddress(buffer);
    env->DeleteLocalRef(buffer);
    if (!read_argument(words, word, data, arguments[index])) {
      return static_cast<jint>(Error::InvalidArgument);
    }
  }
  return static_cast<jint>(program_of(handle).execute(text_of(env, method), arguments));
}

NATIVE(jlongArray, outputs)(JNIEnv* env, jclass, jlong handle, jstring method) {
  std::vector<jlong> words;
  for (const EValue& value : program_of(handle).outputs(text_of(env, method))) {
    write_output(value, words);
  }
  jlongArray encoded = env->NewLongArray(static_cast<jsize>(words.size()));
  if (encoded != nullptr) {
    env->SetLongArrayRegion(encoded, 0, static_cast<jsize>(words.size()), words.data());
  }
  return encoded;
}

// One for each output: where a tensor lies, null for what is none.
NATIVE(jobjectArray, outputBuffers)(JNIEnv* env, jclass, jlong handle, jstring method) {
  const auto values = program_of(handle).outputs(text_of(env, method));
  jobjectArray buffers =
      env->NewObjectArray(static_cast<jsize>(values.size()), env->FindClass("java/nio/ByteBuffer"), nullptr);
  for (size_t index = 0; buffers != nullptr && index < values.size(); index++) {
    if (!values[index].isTensor()) {
      continue;
    }
    static char empty;
    const auto& tensor = values[index].toTensor();
    void* data = tensor.nbytes() == 0 ? &empty : tensor.mutable_data_ptr();
    jobject buffer = env->NewDirectByteBuffer(data, static_cast<jlong>(tensor.nbytes()));
    if (buffer == nullptr) {
      return nullptr;
    }
    env->SetObjectArrayElement(buffers, static_cast<jsize>(index), buffer);
    env->DeleteLocalRef(buffer);
  }
  return buffers;
}

NATIVE(jobjectArray, registeredOperators)(JNIEnv* env, jclass) {
  std::vector<std::string> names;
  for (const auto& kernel : executorch::runtime::get_registered_kernels()) {
    names.emplace_back(kernel.name_);
  }
  return java_texts(env, names);
}

NATIVE(jobjectArray, registeredBackends)(JNIEnv* env, jclass) {
  std::vector<std::string> names;
  for (size_t index = 0; index < executorch::runtime::get_num_registered_backends(); index++) {
    auto name = executorch::runtime::get_backend_name(index);
    names.emplace_back(name.ok() ? *name : "");
  }
  return java_texts(env, names);
}

NATIVE(jobjectArray, loggedErrors)(JNIEnv* env, jclass) { return java_texts(env, chainfed::logged_errors()); }
