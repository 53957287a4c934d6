// Stands in for CUDA's runtime under the compiled extension: nothing runs here, every call goes to Python.
#include <stddef.h>
#include <stdint.h>

typedef struct { unsigned x, y, z; } dim3;
typedef int (*launch_t)(const char* name, const unsigned* sizes, void** arguments, size_t shared, void* stream);
typedef int (*fill_t)(void* at, int byte, size_t count, void* stream);

enum { kInvalidValue = 1, kInvalidDevice = 101, kInvalidFunction = 98, kMost = 4096, kPlainShared = 48 * 1024 };
enum { kMultiprocessors = 16, kSharedOptIn = 97, kDynamicShared = 8 };  // attributes, as cuda_runtime.h numbers them

static struct { const void* function; const char* name; size_t shared; } kernels[kMost];
static int count, multiprocessors = 2, last_error;
static size_t shared_limit;
static launch_t launch;
static fill_t fill;
static struct { dim3 grid, block; size_t shared; void* stream; } configuration;

void s2v_emulator_connect(launch_t on_launch, fill_t on_fill, size_t limit, int processors) {
  launch = on_launch;
  fill = on_fill;
  shared_limit = limit;
  multiprocessors = processors;
}

static int error(int code) {
  if (code) last_error = code;
  return code;
}

static int find(const void* function) {
  for (int i = 0; i < count; ++i)
    if (kernels[i].function == function) return i;
  return -1;
}

void** __cudaRegisterFatBinary(void* binary) { return (void**)binary; }
void __cudaRegisterFatBinaryEnd(void** handle) { (void)handle; }
void __cudaUnregisterFatBinary(void** handle) { (void)handle; }
void __cudaRegisterVar(void** handle, char* at, char* address, const char* name, int a, size_t b, int c, int d) {
  (void)handle, (void)at, (void)address, (void)name, (void)a, (void)b, (void)c, (void)d;
}
void __cudaRegisterFunction(void** handle, const char* function, char* device, const char* name, int a, void* b,
                            void* c, void* d, void* e, int* f) {
  (void)handle, (void)device, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f;
  if (count < kMost) {
    kernels[count].function = function;
    kernels[count].name = name;
    kernels[count++].shared = 0;
  }
}

int cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared, void* stream) {
  const int i = find(function);
  if (i < 0) return error(kInvalidFunction);
  if (shared > kPlainShared && shared > kernels[i].shared) return error(kInvalidValue);
  const unsigned sizes[6] = {grid.x, grid.y, grid.z, block.x, block.y, block.z};
  for (int k = 0; k < 6; ++k)
    if (sizes[k] == 0 || (k > 0 && k < 3 && sizes[k] > 65535) || (k > 2 && sizes[k] > 1024)) return error(kInvalidValue);
  return error(launch(kernels[i].name, sizes, arguments, shared, stream));
}
int __cudaGetKernel(const void** kernel, const void* function) {
  *kernel = function;
  return 0;
}
int __cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared, void* stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  configuration.grid = grid, configuration.block = block;
  configuration.shared = shared, configuration.stream = stream;
  return 0;
}
int __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void** stream) {
  *grid = configuration.grid, *block = configuration.block;
  *shared = configuration.shared, *stream = configuration.stream;
  return 0;
}

int cudaGetDevice(int* device) {
  *device = 0;
  return 0;
}
int cudaSetDevice(int device) { return error(device ? kInvalidDevice : 0); }
int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  if (device) return error(kInvalidDevice);
  if (attribute == kMultiprocessors) *value = multiprocessors;
  else if (attribute == kSharedOptIn) *value = (int)shared_limit;
  else return error(kInvalidValue);
  return 0;
}
int cudaFuncSetAttribute(const void* function, int attribute, int value) {
  const int i = find(function);
  if (i < 0) return error(kInvalidFunction);
  if (attribute != kDynamicShared || value < 0 || (size_t)value > shared_limit) return error(kInvalidValue);
  kernels[i].shared = (size_t)value;
  return 0;
}
int cudaMemsetAsync(void* at, int byte, size_t bytes, void* stream) { return error(fill(at, byte, bytes, stream)); }
int cudaPeekAtLastError(void) { return last_error; }
int cudaGetLastError(void) {
  const int code = last_error;
  last_error = 0;
  return code;
}
const char* cudaGetErrorString(int code) { return code == kInvalidValue ? "invalid argument" : "the emulator stopped"; }
