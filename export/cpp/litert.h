// The functions of LiteRT's C API that the client calls, as libLiteRt of the package ai-edge-litert 2.3.0 exports them.
// The package has the library without its headers. Another version needs another look at these declarations.

#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

typedef struct LiteRtEnvironmentT* LiteRtEnvironment;
typedef struct LiteRtModelT* LiteRtModel;
typedef struct LiteRtOptionsT* LiteRtOptions;
typedef struct LiteRtOpaqueOptionsT* LiteRtOpaqueOptions;
typedef struct LiteRtCompiledModelT* LiteRtCompiledModel;
typedef struct LiteRtSignatureT* LiteRtSignature;
typedef struct LiteRtTensorT* LiteRtTensor;
typedef struct LiteRtTensorBufferT* LiteRtTensorBuffer;

typedef int LiteRtStatus;  // 0 = done

enum { kLiteRtStatusErrorInvalidFlatbuffer = 501 };
enum { kLiteRtHwAcceleratorCpu = 1 };
enum { kLiteRtElementTypeFloat32 = 1, kLiteRtElementTypeInt32 = 2 };
enum { kLiteRtTensorBufferTypeHostMemory = 1 };
enum { kLiteRtTensorBufferLockModeRead = 0, kLiteRtTensorBufferLockModeWrite = 1 };

typedef struct {
  int element_type;
  unsigned int rank : 7;
  bool has_strides : 1;
  int32_t dimensions[8];
  uint32_t strides[8];
} LiteRtRankedTensorType;

static_assert(sizeof(LiteRtRankedTensorType) == 72, "the layout of LiteRT 2.3.0");

LiteRtStatus LiteRtCreateEnvironment(int num_options, const void* options, LiteRtEnvironment* environment);
// Unlike LiteRtCreateModelFromFile, this verifies that the flatbuffer lies within its bytes; they are not copied.
LiteRtStatus LiteRtCreateModelFromBuffer(LiteRtEnvironment, const void* bytes, size_t size, LiteRtModel* model);
LiteRtStatus LiteRtCreateOptions(LiteRtOptions* options);
LiteRtStatus LiteRtSetOptionsHardwareAccelerators(LiteRtOptions, int accelerators);
LiteRtStatus LiteRtCreateOpaqueOptions(const char* name, void* content, void (*free_content)(void*),
                                       LiteRtOpaqueOptions* options);
LiteRtStatus LiteRtAddOpaqueOptions(LiteRtOptions, LiteRtOpaqueOptions);
LiteRtStatus LiteRtCreateCompiledModel(LiteRtEnvironment, LiteRtModel, LiteRtOptions, LiteRtCompiledModel* compiled);

LiteRtStatus LiteRtGetNumModelSignatures(LiteRtModel, size_t* count);
LiteRtStatus LiteRtGetModelSignature(LiteRtModel, size_t index, LiteRtSignature* signature);
LiteRtStatus LiteRtGetSignatureKey(LiteRtSignature, const char** key);
LiteRtStatus LiteRtGetNumSignatureInputs(LiteRtSignature, size_t* count);
LiteRtStatus LiteRtGetNumSignatureOutputs(LiteRtSignature, size_t* count);
LiteRtStatus LiteRtGetSignatureInputName(LiteRtSignature, size_t index, const char** name);
LiteRtStatus LiteRtGetSignatureOutputName(LiteRtSignature, size_t index, const char** name);
LiteRtStatus LiteRtGetSignatureInputTensorByIndex(LiteRtSignature, size_t index, LiteRtTensor* tensor);
LiteRtStatus LiteRtGetSignatureOutputTensorByIndex(LiteRtSignature, size_t index, LiteRtTensor* tensor);
LiteRtStatus LiteRtGetRankedTensorType(LiteRtTensor, LiteRtRankedTensorType* type);

LiteRtStatus LiteRtCreateManagedTensorBuffer(LiteRtEnvironment, int buffer_type, const LiteRtRankedTensorType* type,
                                             size_t bytes, LiteRtTensorBuffer* buffer);
LiteRtStatus LiteRtLockTensorBuffer(LiteRtTensorBuffer, void** memory, int mode);
LiteRtStatus LiteRtUnlockTensorBuffer(LiteRtTensorBuffer);
LiteRtStatus LiteRtRunCompiledModel(LiteRtCompiledModel, size_t signature, size_t num_inputs,
                                    LiteRtTensorBuffer* inputs, size_t num_outputs, LiteRtTensorBuffer* outputs);

}  // extern "C"
