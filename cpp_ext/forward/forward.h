/* C ABI of the fused forward pass: tokens and candidates in, success probabilities out.
 *
 * A weights file (weights.h) describes a backbone of the Llama family whose first tokens, the inquiry
 * prompt, are the same in every request. A request is one sequence: its tokens, then its candidates,
 * each at the position after the last token. A position sees the tokens before it and itself, so no
 * candidate sees another. The residual stream at a candidate's position ends in a probability as
 * score.h defines it.
 *
 * Calls on one handle wait for each other. Nothing is thrown. No state is shared by handles.
 */
#ifndef MODELSAT_FORWARD_H
#define MODELSAT_FORWARD_H

#include <stdint.h>

#ifdef __cplusplus
#define MODELSAT_FORWARD_NOEXCEPT noexcept
extern "C" {
#else
#define MODELSAT_FORWARD_NOEXCEPT
#endif
#pragma GCC visibility push(default) /* all else is compiled with -fvisibility=hidden */

/* Raised with every change below. */
enum { MODELSAT_FORWARD_ABI_VERSION = 2 };

enum {
  MODELSAT_FORWARD_OK = 0,
  MODELSAT_FORWARD_NULL_POINTER = 1,
  MODELSAT_FORWARD_BAD_SIZE = 2,    /* a negative number, or more rows than a pass can count */
  MODELSAT_FORWARD_BAD_FILE = 3,    /* the file is missing, damaged or of another version */
  MODELSAT_FORWARD_BAD_PATH = 4,    /* this CPU, build or number format has no such path */
  MODELSAT_FORWARD_BAD_TOKEN = 5,   /* a token outside of the vocabulary */
  MODELSAT_FORWARD_BAD_PROMPT = 6,  /* the tokens do not begin with the inquiry prompt */
  MODELSAT_FORWARD_BAD_ROW = 7,     /* a row outside of the table */
  MODELSAT_FORWARD_TOO_LONG = 8,    /* more tokens than the file has positions */
  MODELSAT_FORWARD_NO_MEMORY = 9,
  MODELSAT_FORWARD_WRONG = 10, /* the path computes something else than plain loops */
};

enum {
  MODELSAT_FORWARD_FREE_AFFINITY = 1, /* never set the affinity of helper threads */
  MODELSAT_FORWARD_SHARE_WEIGHTS = 2, /* map the file, which processes share; slower */
};

typedef struct modelsat_forward modelsat_forward;

/* One request. The caller owns all arrays, each aligned to its element. */
typedef struct {
  const int64_t* tokens; /* (length) the whole prompt */
  int64_t length;
  const float* table; /* (table_rows, D) embeddings of candidates */
  int64_t table_rows;
  const int64_t* rows; /* (count) rows of `table` to score */
  int64_t count;
  float* probability; /* (count) */
  float* null_row;    /* (D) row before the final norm of the candidate whose embedding is zero */
  float* hidden;      /* (count, D) rows before the final norm, or null */
} modelsat_forward_request;

/* How a row before the final norm becomes a probability; see score.h. */
typedef struct {
  const float* weight; /* (D) */
  float eps, scale, offset;
} modelsat_forward_head;

/* Sizes and names of an open file. */
typedef struct {
  int32_t width, layers, prompt, positions, threads;
  const char* path;   /* a static string: "amx-int8" */
  const char* number; /* a static string: "int8" or "bf16" */
} modelsat_forward_info;

int32_t modelsat_forward_abi_version(void) MODELSAT_FORWARD_NOEXCEPT;

/* The names of the paths that this CPU and build can run, best first, separated by spaces. Asks the
 * kernel for AMX. A static string. */
const char* modelsat_forward_paths(void) MODELSAT_FORWARD_NOEXCEPT;

/* Opens a weights file and starts threads - 1 helpers. path: a name of modelsat_forward_paths(), or
 * null for the first that the file's numbers allow. flags: a sum of the above. */
int modelsat_forward_open(const char* file, const char* path, int32_t threads, int32_t flags,
                          modelsat_forward** handle) MODELSAT_FORWARD_NOEXCEPT;

void modelsat_forward_close(modelsat_forward* handle) MODELSAT_FORWARD_NOEXCEPT;

int modelsat_forward_describe(const modelsat_forward* handle,
                              modelsat_forward_info* info) MODELSAT_FORWARD_NOEXCEPT;

/* Scores all candidates of `batch` requests in shared passes, without padding. A probability depends
 * neither on the other requests nor on the other candidates. After an error nothing is written. */
int modelsat_forward_run(modelsat_forward* handle, const modelsat_forward_request* requests,
                         int64_t batch, const modelsat_forward_head* head) MODELSAT_FORWARD_NOEXCEPT;

/* Compares the first two layers' results for a fixed request with those of plain loops: MODELSAT_FORWARD_WRONG
 * if this path goes wrong on this CPU. Takes some hundred milliseconds; see reference.h. */
int modelsat_forward_test(modelsat_forward* handle) MODELSAT_FORWARD_NOEXCEPT;

/* For measurements: the matrix products alone of a pass of this many token rows (the inquiry prompt
 * not counted) and candidate rows. */
int modelsat_forward_products(modelsat_forward* handle, int64_t tokens,
                              int64_t candidates) MODELSAT_FORWARD_NOEXCEPT;

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
