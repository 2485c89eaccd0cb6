-- xxh32 in plain SQL, from the xxHash specification ("XXH32 Algorithm Description"), so that any
-- DuckDB client that opens catalog.duckdb can hash. About 2 microseconds a value, 50 for one of 50 bytes: SQL over the
-- vocabulary reads stored hashes instead. A value's bytes travel as hexadecimal text `hx`, with n
-- bytes. The primes of the specification: 2654435761, 2246822519, 3266489917, 668265263, 374761393.
CREATE OR REPLACE MACRO xxh32_low(x) AS x & 4294967295::UBIGINT;
CREATE OR REPLACE MACRO xxh32_rotl(x, r) AS xxh32_low((x << r::UBIGINT) | (x >> (32 - r)::UBIGINT));
CREATE OR REPLACE MACRO xxh32_byte(hx, i) AS ('0x' || hx[2*i+1:2*i+2])::UBIGINT;
-- the i-th 32-bit word, little endian
CREATE OR REPLACE MACRO xxh32_word(hx, i) AS
    ('0x' || hx[8*i+7:8*i+8] || hx[8*i+5:8*i+6] || hx[8*i+3:8*i+4] || hx[8*i+1:8*i+2])::UBIGINT;
-- step 2: one of the four accumulators over all 16-byte stripes
CREATE OR REPLACE MACRO xxh32_lane(hx, n, lane, start) AS list_reduce(
    range(n // 16),
    lambda acc, s: xxh32_low(xxh32_rotl(xxh32_low(acc + xxh32_word(hx, 4*s + lane) * 2246822519::UBIGINT), 13) * 2654435761::UBIGINT),
    xxh32_low(start));
-- steps 1 to 4: the state before the remaining bytes
CREATE OR REPLACE MACRO xxh32_start(hx, n, seed) AS n::UBIGINT + CASE WHEN n >= 16
    THEN xxh32_rotl(xxh32_lane(hx, n, 0, seed + 2654435761::UBIGINT + 2246822519::UBIGINT), 1)
       + xxh32_rotl(xxh32_lane(hx, n, 1, seed + 2246822519::UBIGINT), 7)
       + xxh32_rotl(xxh32_lane(hx, n, 2, seed), 12)
       + xxh32_rotl(xxh32_lane(hx, n, 3, seed + 4294967296::UBIGINT - 2654435761::UBIGINT), 18)
    ELSE seed + 374761393::UBIGINT END;
-- step 5: the remaining words, then the remaining bytes
CREATE OR REPLACE MACRO xxh32_words(hx, n, h) AS list_reduce(
    range(n // 16 * 4, n // 4),
    lambda acc, i: xxh32_low(xxh32_rotl(xxh32_low(acc + xxh32_word(hx, i) * 3266489917::UBIGINT), 17) * 668265263::UBIGINT),
    xxh32_low(h));
CREATE OR REPLACE MACRO xxh32_bytes(hx, n, h) AS list_reduce(
    range(n // 4 * 4, n),
    lambda acc, i: xxh32_low(xxh32_rotl(xxh32_low(acc + xxh32_byte(hx, i) * 374761393::UBIGINT), 11) * 2654435761::UBIGINT),
    h);
-- step 6: the final mix, as a list so that the expression of h stands once
CREATE OR REPLACE MACRO xxh32_final(h) AS list_reduce(
    [{'r': 15, 'p': 2246822519::UBIGINT}, {'r': 13, 'p': 3266489917::UBIGINT}, {'r': 16, 'p': 1::UBIGINT}],
    lambda acc, step: xxh32_low(xor(acc, acc >> step.r::UBIGINT) * step.p),
    h);
CREATE OR REPLACE MACRO xxh32_hex(hx, n, seed) AS
    xxh32_final(xxh32_bytes(hx, n, xxh32_words(hx, n, xxh32_start(hx, n, seed))));
-- The hash of a value's UTF-8, a UINTEGER; a null is the empty text.
CREATE OR REPLACE MACRO xxh32(value, seed) AS xxh32_hex(
    hex(encode(coalesce(value::VARCHAR, ''))),
    octet_length(encode(coalesce(value::VARCHAR, ''))),
    seed::UBIGINT)::UINTEGER;
