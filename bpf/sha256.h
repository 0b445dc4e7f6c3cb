/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * SHA-256 (FIPS 180-4) over kernel memory.
 *
 * The state lives in map memory that belongs to one task, never in a per-CPU scratch area:
 * on a preemptible kernel two loaders share a CPU, and with it such an area.
 */
#ifndef KMODGATE_SHA256_H
#define KMODGATE_SHA256_H

#include "kernel.h"

#define KMG_SHA256_BLOCK 64
/* Bytes fetched with one bpf_probe_read_kernel(): its cost is that of half a block. */
#define KMG_SHA256_CHUNK 2048

struct kmg_sha256 {
	__u32 h[8];
	__u32 w[16]; /* window of the message schedule; on the stack the frame would not fit */
	__u8 chunk[KMG_SHA256_CHUNK] __attribute__((aligned(8)));
};

static const __u32 kmg_sha256_k[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/*
 * The four functions of FIPS 180-4, 4.1.2. BPF has no instruction that rotates: a rotation is two
 * shifts and an OR. A word that is written twice into 64 bits rotates by one shift to the right.
 * KMG_SHA256_ROTATE is for a compiler whose machine can rotate (tests/bench/sha256_native.c).
 */
#ifdef KMG_SHA256_ROTATE
typedef __u32 kmg_twice;
#define KMG_TWICE(x) (x)
#define KMG_ROR(twice, n) ((twice) >> (n) | (twice) << (32 - (n)))
#else
typedef __u64 kmg_twice;
#define KMG_TWICE(x) ((__u64)(x) | (__u64)(x) << 32)
#define KMG_ROR(twice, n) ((__u32)((twice) >> (n)))
#endif

/* x rotated by p, by q and by r. */
static __always_inline __u32 kmg_sha256_rotate(__u32 x, int p, int q, int r)
{
	kmg_twice twice = KMG_TWICE(x);

	return KMG_ROR(twice, p) ^ KMG_ROR(twice, q) ^ KMG_ROR(twice, r);
}

/* x rotated by p and by q, and shifted by r. */
static __always_inline __u32 kmg_sha256_shift(__u32 x, int p, int q, int r)
{
	kmg_twice twice = KMG_TWICE(x);

	return KMG_ROR(twice, p) ^ KMG_ROR(twice, q) ^ x >> r;
}

#define KMG_BIG_SIGMA_0(x) kmg_sha256_rotate(x, 2, 13, 22)
#define KMG_BIG_SIGMA_1(x) kmg_sha256_rotate(x, 6, 11, 25)
#define KMG_SIGMA_0(x) kmg_sha256_shift(x, 7, 18, 3)
#define KMG_SIGMA_1(x) kmg_sha256_shift(x, 17, 19, 10)

/* Both with one operation less than the textbook's. The second shares b ^ c with the round before. */
#define KMG_CHOOSE(e, f, g) ((((f) ^ (g)) & (e)) ^ (g))
#define KMG_MAJORITY(a, b, c) ((b) ^ (((a) ^ (b)) & ((b) ^ (c))))

/*
 * One round. Instead of moving eight variables along, the caller names them one place
 * further each time; d and h are the two that change.
 */
#define KMG_ROUND(a, b, c, d, e, f, g, h, k, w)                                       \
	do {                                                                          \
		__u32 t = (h) + KMG_BIG_SIGMA_1(e) + KMG_CHOOSE(e, f, g) + (k) + (w); \
		(d) += t;                                                             \
		(h) = t + KMG_BIG_SIGMA_0(a) + KMG_MAJORITY(a, b, c);                 \
	} while (0)

/* The next word of the message schedule, kept in a window of 16. */
#define KMG_SCHEDULE(w, i) \
	((w)[i] += KMG_SIGMA_0((w)[((i) + 1) & 15]) + (w)[((i) + 9) & 15] + KMG_SIGMA_1((w)[((i) + 14) & 15]))

#define KMG_EIGHT_ROUNDS(WORD, at)                                              \
	do {                                                                    \
		KMG_ROUND(a, b, c, d, e, f, g, h, k[(at)], WORD((at)));         \
		KMG_ROUND(h, a, b, c, d, e, f, g, k[(at) + 1], WORD((at) + 1)); \
		KMG_ROUND(g, h, a, b, c, d, e, f, k[(at) + 2], WORD((at) + 2)); \
		KMG_ROUND(f, g, h, a, b, c, d, e, k[(at) + 3], WORD((at) + 3)); \
		KMG_ROUND(e, f, g, h, a, b, c, d, k[(at) + 4], WORD((at) + 4)); \
		KMG_ROUND(d, e, f, g, h, a, b, c, k[(at) + 5], WORD((at) + 5)); \
		KMG_ROUND(c, d, e, f, g, h, a, b, k[(at) + 6], WORD((at) + 6)); \
		KMG_ROUND(b, c, d, e, f, g, h, a, k[(at) + 7], WORD((at) + 7)); \
	} while (0)

/*
 * Compresses the block at s->chunk[offset]. A global function: the verifier walks it once,
 * however often it is called, and takes the pointer for a whole struct kmg_sha256.
 */
__noinline int kmg_sha256_block(struct kmg_sha256 *s, __u32 offset)
{
	const __u32 *in, *k = kmg_sha256_k;
	__u32 a, b, c, d, e, f, g, h;
	volatile __u32 *w;

	if (!s)
		return 0;
	/* A mask, not a comparison: the verifier must see the bound after spilling. */
	offset &= KMG_SHA256_CHUNK - KMG_SHA256_BLOCK;
	in = (const __u32 *)(s->chunk + offset);
	w = s->w;

	a = s->h[0];
	b = s->h[1];
	c = s->h[2];
	d = s->h[3];
	e = s->h[4];
	f = s->h[5];
	g = s->h[6];
	h = s->h[7];

#define KMG_FIRST(i) (w[i] = __builtin_bswap32(in[i]))
#define KMG_LATER(i) KMG_SCHEDULE(w, i)
	KMG_EIGHT_ROUNDS(KMG_FIRST, 0);
	KMG_EIGHT_ROUNDS(KMG_FIRST, 8);
	/* Three turns of 16 rounds; unrolled further the stack frame outgrows 512 bytes. */
#pragma clang loop unroll(disable)
	for (int turn = 0; turn < 3; turn++) {
		k += 16;
		KMG_EIGHT_ROUNDS(KMG_LATER, 0);
		KMG_EIGHT_ROUNDS(KMG_LATER, 8);
	}
#undef KMG_FIRST
#undef KMG_LATER

	s->h[0] += a;
	s->h[1] += b;
	s->h[2] += c;
	s->h[3] += d;
	s->h[4] += e;
	s->h[5] += f;
	s->h[6] += g;
	s->h[7] += h;
	return 0;
}

struct kmg_sha256_walk {
	struct kmg_sha256 *s;
	__u64 address;
	__u32 failed;
};

static long kmg_sha256_chunk(__u32 index, struct kmg_sha256_walk *walk)
{
	struct kmg_sha256 *s = walk->s;
	const void *from = (const void *)(walk->address + (__u64)index * KMG_SHA256_CHUNK);

	if (bpf_probe_read_kernel(s->chunk, KMG_SHA256_CHUNK, from)) {
		walk->failed = 1;
		return 1;
	}
	for (__u32 offset = 0; offset < KMG_SHA256_CHUNK; offset += KMG_SHA256_BLOCK)
		kmg_sha256_block(s, offset);
	return 0;
}

/*
 * Digest of `length` bytes of kernel memory at `address`, big-endian words to `digest`.
 * The caller bounds the length: bpf_loop() stops at 2^23 turns. Returns 0, or -1 when the
 * memory cannot be read.
 */
static __always_inline int kmg_sha256(struct kmg_sha256 *s, __u64 address, __u64 length, __u8 *digest)
{
	struct kmg_sha256_walk walk = { .s = s, .address = address };
	__u32 tail = length & (KMG_SHA256_CHUNK - 1);
	__u32 whole = tail & ~(KMG_SHA256_BLOCK - 1);
	__u32 rest = tail & (KMG_SHA256_BLOCK - 1);

	s->h[0] = 0x6a09e667;
	s->h[1] = 0xbb67ae85;
	s->h[2] = 0x3c6ef372;
	s->h[3] = 0xa54ff53a;
	s->h[4] = 0x510e527f;
	s->h[5] = 0x9b05688c;
	s->h[6] = 0x1f83d9ab;
	s->h[7] = 0x5be0cd19;
	bpf_loop(length / KMG_SHA256_CHUNK, kmg_sha256_chunk, &walk, 0);
	if (walk.failed)
		return -1;

	/* The last, partial chunk; then padding, which may take one block more. */
	address += length - tail;
	if (tail && bpf_probe_read_kernel(s->chunk, tail & (KMG_SHA256_CHUNK - 1), (const void *)address))
		return -1;
	for (__u32 offset = 0; offset < KMG_SHA256_CHUNK - KMG_SHA256_BLOCK; offset += KMG_SHA256_BLOCK) {
		if (offset >= whole)
			break;
		kmg_sha256_block(s, offset);
	}

	/* The rest is fetched again to the front, into zeros: padding without a loop over bytes. */
	__builtin_memset(s->chunk, 0, 2 * KMG_SHA256_BLOCK);
	if (rest && bpf_probe_read_kernel(s->chunk, rest, (const void *)(address + whole)))
		return -1;
	s->chunk[rest] = 0x80;
	if (rest < KMG_SHA256_BLOCK - 8) {
		*(__u64 *)(s->chunk + KMG_SHA256_BLOCK - 8) = __builtin_bswap64(length << 3);
		kmg_sha256_block(s, 0);
	} else {
		*(__u64 *)(s->chunk + 2 * KMG_SHA256_BLOCK - 8) = __builtin_bswap64(length << 3);
		kmg_sha256_block(s, 0);
		kmg_sha256_block(s, KMG_SHA256_BLOCK);
	}

	for (int i = 0; i < 8; i++) {
		digest[4 * i] = s->h[i] >> 24;
		digest[4 * i + 1] = s->h[i] >> 16;
		digest[4 * i + 2] = s->h[i] >> 8;
		digest[4 * i + 3] = s->h[i];
	}
	return 0;
}

#endif /* KMODGATE_SHA256_H */
