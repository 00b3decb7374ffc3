// An exported file on LiteRT: its signatures, called by name.

#pragma once

#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <map>

#include "litert.h"
#include "side_file.hpp"

// Keeps what LiteRT says while it loads, and shows only its first error, in a line of ours.
class Log {
 public:
  Log() : file_(std::tmpfile()), stderr_(dup(STDERR_FILENO)) {
    if (file_ != nullptr) dup2(fileno(file_), STDERR_FILENO);
  }
  ~Log() {
    dup2(stderr_, STDERR_FILENO);
    close(stderr_);
    if (file_ != nullptr) std::fclose(file_);
  }
  std::string error(const char* unknown) {
    char line[400];
    if (file_ == nullptr) return unknown;
    for (std::rewind(file_); std::fgets(line, sizeof line, file_) != nullptr;) {
      const char* const mark = "ERROR: ";
      const char* found = std::strstr(line, mark);
      if (found == nullptr) continue;
      found += std::strlen(mark);
      return std::string(found, std::strcspn(found, "\n"));
    }
    return unknown;
  }

 private:
  std::FILE* file_;
  int stderr_;
};

// Ends the program in one line where LiteRT breaks down on a file that is altered within its bounds.
inline void end_breakdowns_in_a_line(const fs::path& path) {
  static const std::string line = text("generate: ", path.string(), " cannot be run by LiteRT: it broke down on it\n");
  static const int to = dup(STDERR_FILENO);  // which Log takes from LiteRT for a while
  for (int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) {
    std::signal(signal, [](int) { _exit(write(to, line.data(), line.size()) < 0 ? 2 : 1); });
  }
}

class Tensor {
 public:
  Tensor(LiteRtEnvironment environment, LiteRtTensor tensor) {
    if (LiteRtGetRankedTensorType(tensor, &type_) != 0) throw std::runtime_error("a tensor of unknown shape");
    shape.assign(type_.dimensions, type_.dimensions + type_.rank);
    for (int size : shape) count_ *= size;
    if (LiteRtCreateManagedTensorBuffer(environment, kLiteRtTensorBufferTypeHostMemory, &type_, 4 * count_, &buffer)) {
      throw std::runtime_error("no memory for a tensor");
    }
  }
  bool is_float() const { return type_.element_type == kLiteRtElementTypeFloat32; }

  template <typename Value>
  void write(const std::vector<Value>& values) {
    if (values.size() != count_) throw std::runtime_error("values of another number than the tensor's");
    std::memcpy(lock(kLiteRtTensorBufferLockModeWrite), values.data(), 4 * count_);
    LiteRtUnlockTensorBuffer(buffer);
  }
  template <typename Value>
  std::vector<Value> read() {
    std::vector<Value> values(count_);
    std::memcpy(values.data(), lock(kLiteRtTensorBufferLockModeRead), 4 * count_);
    LiteRtUnlockTensorBuffer(buffer);
    return values;
  }

  LiteRtTensorBuffer buffer = nullptr;
  std::vector<int> shape;

 private:
  void* lock(int mode) {
    void* memory = nullptr;
    if (LiteRtLockTensorBuffer(buffer, &memory, mode) != 0) throw std::runtime_error("a tensor cannot be reached");
    return memory;
  }
  LiteRtRankedTensorType type_;
  size_t count_ = 1;
};

// A signature with its tensors by name, in the order of the file.
struct Signature {
  size_t index;
  std::vector<std::pair<std::string, Tensor>> inputs, outputs;

  template <typename Value>
  Signature& with(const std::string& name, const std::vector<Value>& values) {
    for (auto& [key, tensor] : inputs) {
      if (key == name) tensor.write(values);
    }
    return *this;
  }
  bool takes(const std::string& name) const {
    return std::any_of(inputs.begin(), inputs.end(), [&](auto& input) { return input.first == name; });
  }
  template <typename Value>
  std::vector<Value> output(const std::string& name) {
    for (auto& [key, tensor] : outputs) {
      if (key == name) return tensor.template read<Value>();
    }
    throw std::runtime_error("no output " + name);
  }
};

class Model {
 public:
  // Loads NAME.tflite, with NAME.json in the same folder. Throws InputError for a file that is missing, that is not
  // what its side file describes, that needs a newer runtime or that LiteRT cannot load.
  Model(const fs::path& path, int threads) : path(path), about(read_side_file(path)) {
    const std::string_view bytes = mapped(path);
    check_content(path, bytes, about);
    batch = about["batch_size"];
    classes = about["num_classes"].is_null() ? 0 : about["num_classes"].get<int>();
    height = about["image_shape"][0], width = about["image_shape"][1], channels = about["image_shape"][2];
    end_breakdowns_in_a_line(path);
    Log log;
    try {
      load(bytes, threads);
    } catch (const std::exception& error) {
      throw InputError(text(path.string(), " cannot be run by LiteRT: ", log.error(error.what())));
    }
    for (const auto& [name, signature] : signatures_) {
      if (is_described(name, signature)) continue;
      throw InputError(text(fs::path(path).replace_extension(".json").string(), " must describe ",
                            path.filename().string(), ". Received: other batches, shapes or classes"));
    }
  }
  Model(const Model&) = delete;

  bool has(const std::string& name) const { return signatures_.count(name) > 0; }
  Signature& operator[](const std::string& name) { return signatures_.at(name); }
  void run(Signature& signature) {
    std::vector<LiteRtTensorBuffer> inputs, outputs;
    for (auto& [name, tensor] : signature.inputs) inputs.push_back(tensor.buffer);
    for (auto& [name, tensor] : signature.outputs) outputs.push_back(tensor.buffer);
    done(LiteRtRunCompiledModel(compiled_, signature.index, inputs.size(), inputs.data(), outputs.size(),
                                outputs.data()));
  }

  std::string names() const {
    std::string joined;
    for (const auto& [name, signature] : signatures_) joined += (joined.empty() ? "" : ", ") + name;
    return joined;
  }

  const fs::path path;
  const json about;
  int batch = 0, height = 0, width = 0, channels = 0, classes = 0;

 private:
  static void done(LiteRtStatus status) {
    if (status != 0) throw std::runtime_error(text("LiteRT's status ", status));
  }

  void load(std::string_view bytes, int threads) {
    LiteRtModel model;
    LiteRtOptions options;
    LiteRtOpaqueOptions of_cpu;
    std::string count = text("num_threads = ", threads, "\n");
    done(LiteRtCreateEnvironment(0, nullptr, &environment_));
    LiteRtStatus status = LiteRtCreateModelFromBuffer(environment_, bytes.data(), bytes.size(), &model);
    if (status == kLiteRtStatusErrorInvalidFlatbuffer) throw std::runtime_error("no valid flatbuffer");
    done(status);
    done(LiteRtCreateOptions(&options));
    done(LiteRtSetOptionsHardwareAccelerators(options, kLiteRtHwAcceleratorCpu));
    done(LiteRtCreateOpaqueOptions("xnnpack", strdup(count.c_str()), std::free, &of_cpu));
    done(LiteRtAddOpaqueOptions(options, of_cpu));
    done(LiteRtCreateCompiledModel(environment_, model, options, &compiled_));
    size_t signatures;
    done(LiteRtGetNumModelSignatures(model, &signatures));
    for (size_t index = 0; index < signatures; ++index) {
      LiteRtSignature signature;
      const char* key;
      done(LiteRtGetModelSignature(model, index, &signature));
      done(LiteRtGetSignatureKey(signature, &key));
      Signature& made = signatures_.emplace(key, Signature{index, {}, {}}).first->second;
      made.inputs = tensors(signature, LiteRtGetNumSignatureInputs, LiteRtGetSignatureInputName,
                            LiteRtGetSignatureInputTensorByIndex);
      made.outputs = tensors(signature, LiteRtGetNumSignatureOutputs, LiteRtGetSignatureOutputName,
                             LiteRtGetSignatureOutputTensorByIndex);
    }
  }

  template <typename Count, typename Name, typename Get>
  std::vector<std::pair<std::string, Tensor>> tensors(LiteRtSignature signature, Count count, Name name, Get get) {
    std::vector<std::pair<std::string, Tensor>> found;
    size_t size;
    done(count(signature, &size));
    for (size_t index = 0; index < size; ++index) {
      const char* key;
      LiteRtTensor tensor;
      done(name(signature, index, &key));
      done(get(signature, index, &tensor));
      found.emplace_back(key, Tensor(environment_, tensor));
    }
    return found;
  }

  bool is_described(const std::string& name, const Signature& signature) const {
    bool has_network = name == "generate" || name == "step" || name == "denoise";
    if (has_network && signature.takes("label") != (classes > 0)) return false;
    for (auto* tensors : {&signature.inputs, &signature.outputs}) {
      for (auto& [key, tensor] : *tensors) {
        std::vector<int> expected = {key == "index" || key == "stream" ? 1 : batch};
        bool is_number = key == "index" || key == "stream" || key == "seed" || key == "label" || key == "t";
        bool is_state = key == "x" && name != "denoise";
        bool is_picture = key == "x0" || key == "eps" || key == "fraction" || key == "noise" || key == "image";
        if (!is_number && !is_picture && key != "x") return false;
        if (!is_number) expected = {batch, height, width, is_state ? about["state_channels"].get<int>() : channels};
        if (tensor.shape != expected || tensor.is_float() == (is_number || key == "image")) return false;
      }
    }
    return true;
  }

  LiteRtEnvironment environment_ = nullptr;
  LiteRtCompiledModel compiled_ = nullptr;
  std::map<std::string, Signature> signatures_;
};
