-- Who shares a slot with whom, for any number of slots n; without one, for the snapshot's own. Exact counts over the
-- view `vocabulary`, which keeps every value's full hashes: nothing is hashed again. A use is one value under one of its
-- lookups, a row of `slots`. Pairs are counted from the numbers that meet in a slot, never listed: a slot with a
-- thousand values costs a thousand rows. `count` is traffic everywhere: how many examples have the value.
CREATE OR REPLACE MACRO known_num_slots(n) AS CASE WHEN n BETWEEN 1 AND 2147483647 AND n = floor(n) THEN n::BIGINT
    ELSE error('num_slots must be a whole number from 1 to 2147483647, got ' || coalesce(n::VARCHAR, 'NULL')) END;

-- A row for each use. The view of the same name has the snapshot's own number of slots.
CREATE OR REPLACE MACRO slots(n := num_slots()) AS TABLE
    SELECT feature, value, lookup, seed, hashes[lookup + 1] AS hash,
        (hashes[lookup + 1] % known_num_slots(n))::INTEGER AS slot, count
    FROM vocabulary JOIN lookups USING (feature);
CREATE OR REPLACE VIEW slots AS FROM slots();

-- A row for each value: its slots, in the order of its lookups. `number` tells values apart within one query.
CREATE OR REPLACE MACRO value_slots(n := num_slots()) AS TABLE
    SELECT row_number() OVER () AS number, feature, value, count,
        list_transform(hashes, lambda hash: (hash % known_num_slots(n))::INTEGER) AS slots
    FROM vocabulary;

-- A row for each value and each slot that it takes; uses: by how many of its lookups.
CREATE OR REPLACE MACRO taken_slots(n := num_slots()) AS TABLE
    SELECT number, feature, value, count, slots, slot,
        CASE WHEN lone THEN 1 ELSE len(list_filter(slots, lambda other: other = slot)) END AS uses
    FROM (SELECT * EXCLUDE (distinct_slots), len(distinct_slots) = len(slots) AS lone, unnest(distinct_slots) AS slot
        FROM (SELECT *, CASE WHEN len(slots) = 1 THEN slots ELSE list_distinct(slots) END AS distinct_slots
            FROM value_slots(n)));

-- A row for each feature and each slot that it uses. values: how many share it. uses: with all their lookups, more
-- where a value takes it twice. count: how often examples read it.
CREATE OR REPLACE MACRO feature_load(n := num_slots()) AS TABLE
    SELECT slot, feature, count(*) AS values, sum(uses)::BIGINT AS uses, sum(count * uses)::BIGINT AS count
    FROM taken_slots(n) GROUP BY slot, feature;

-- A row for each slot in use, whatever the feature.
CREATE OR REPLACE MACRO slot_load(n := num_slots()) AS TABLE
    SELECT slot, sum(uses)::BIGINT AS uses, sum(values)::BIGINT AS values, count(*) AS features,
        sum(count)::BIGINT AS count
    FROM feature_load(n) GROUP BY slot;

-- How many slots have so many uses; 0 uses: those that no value takes.
CREATE OR REPLACE MACRO slot_histogram(n := num_slots()) AS TABLE
    WITH loads AS MATERIALIZED (SELECT uses, count(*) AS slots, sum(count)::BIGINT AS count FROM slot_load(n) GROUP BY uses)
    SELECT uses, slots, count FROM loads
    UNION ALL
    SELECT 0, known_num_slots(n) - coalesce(sum(slots), 0)::BIGINT, 0 FROM loads
    ORDER BY uses;

-- A row for each lookup: how many slots it uses, how many values share one of these with another value of the same
-- lookup, and how many pairs such values make. repeated: values for which an earlier lookup took the same slot.
CREATE OR REPLACE MACRO lookup_collisions(n := num_slots()) AS TABLE
    WITH uses AS (
        SELECT feature, count, slots, unnest(range(len(slots))) AS lookup, unnest(slots) AS slot FROM value_slots(n)),
    loads AS (
        SELECT feature, lookup, slot, count(*) AS values, sum(count) AS count,
            count(*) FILTER (list_position(slots, slot) <= lookup) AS repeated
        FROM uses GROUP BY feature, lookup, slot)
    SELECT feature, lookup, sum(values)::BIGINT AS values, sum(count)::BIGINT AS count, count(*) AS used,
        coalesce(sum(values) FILTER (values > 1), 0)::BIGINT AS shared,
        coalesce(sum(count) FILTER (values > 1), 0)::BIGINT AS shared_count,
        sum(values * (values - 1) // 2)::BIGINT AS pairs, sum(repeated)::BIGINT AS repeated
    FROM loads GROUP BY feature, lookup;

-- A row for each value: how many of the slots that it takes (distinct ones, `taken`) other values take too, whatever
-- their lookup: those of the same feature, those of other features, any.
CREATE OR REPLACE MACRO value_collisions(n := num_slots()) AS TABLE
    SELECT any_value(feature) AS feature, any_value(value) AS value, any_value(count) AS count, count(*) AS taken,
        count(*) FILTER (same > 1) AS with_same, count(*) FILTER (everyone > same) AS with_others,
        count(*) FILTER (everyone > 1) AS with_any
    FROM (SELECT *, count(*) OVER (PARTITION BY slot, feature) AS same,
        count(*) OVER (PARTITION BY slot) AS everyone FROM taken_slots(n))
    GROUP BY number;

-- Three rows for each feature: its values that share a slot with values of the same feature, of other features, of any.
-- shared: those that share at least one of their slots; all_shared: those that share all. count: their traffic.
CREATE OR REPLACE MACRO collisions(n := num_slots()) AS TABLE
    WITH alike AS (
        SELECT feature, taken, [with_same, with_others, with_any] AS met, count(*) AS values, sum(count) AS count
        FROM value_collisions(n) GROUP BY feature, taken, with_same, with_others, with_any)
    SELECT feature, sharing_with, sum(values)::BIGINT AS values, sum(count)::BIGINT AS count,
        coalesce(sum(values) FILTER (slots > 0), 0)::BIGINT AS shared,
        coalesce(sum(count) FILTER (slots > 0), 0)::BIGINT AS shared_count,
        coalesce(sum(values) FILTER (slots = taken), 0)::BIGINT AS all_shared,
        coalesce(sum(count) FILTER (slots = taken), 0)::BIGINT AS all_shared_count
    FROM (SELECT *, unnest(['same', 'others', 'any']) AS sharing_with, unnest(met) AS slots FROM alike)
    GROUP BY feature, sharing_with;

-- A row for each pair of features, and for each feature with itself. slots: those that both use (with itself: that two
-- of its values use). pairs: pairs of uses, of two values, in one slot. values, count: of `feature`, those that
-- share a slot with a value of `other`; other_values, other_count: the reverse.
CREATE OR REPLACE MACRO feature_pairs(n := num_slots()) AS TABLE
    WITH taken AS MATERIALIZED (SELECT number, feature, slot, uses, count FROM taken_slots(n)),
    loads AS MATERIALIZED (
        SELECT slot, feature, count(*) AS values, sum(uses) AS uses, sum(uses * (uses - 1) // 2) AS same_value
        FROM taken GROUP BY slot, feature),
    names AS MATERIALIZED (SELECT DISTINCT feature FROM vocabulary),
    met AS (
        SELECT one.feature, other.feature AS other, count(*) AS slots,
            sum(CASE WHEN one.feature = other.feature THEN one.uses * (one.uses - 1) // 2 - one.same_value
                ELSE one.uses * other.uses END)::BIGINT AS pairs
        FROM loads AS one JOIN loads AS other USING (slot)
        WHERE one.feature < other.feature OR (one.feature = other.feature AND one.values > 1)
        GROUP BY one.feature, other.feature),
    sharers AS (
        SELECT taken.number, taken.feature, loads.feature AS other, any_value(taken.count) AS count
        FROM taken JOIN loads USING (slot)
        WHERE taken.feature <> loads.feature OR loads.values > 1
        GROUP BY taken.number, taken.feature, loads.feature),
    shared AS MATERIALIZED (
        SELECT feature, other, count(*) AS values, sum(count)::BIGINT AS count FROM sharers GROUP BY feature, other)
    SELECT one.feature, other.feature AS other, coalesce(met.slots, 0) AS slots, coalesce(met.pairs, 0) AS pairs,
        coalesce(here.values, 0) AS values, coalesce(here.count, 0) AS count,
        coalesce(there.values, 0) AS other_values, coalesce(there.count, 0) AS other_count
    FROM names AS one JOIN names AS other ON one.feature <= other.feature
    LEFT JOIN met ON met.feature = one.feature AND met.other = other.feature
    LEFT JOIN shared AS here ON here.feature = one.feature AND here.other = other.feature
    LEFT JOIN shared AS there ON there.feature = other.feature AND there.other = one.feature;

-- A row for each group of values that no lookup separates: the same slots, lookup by lookup. A model reads each lookup's
-- row at a place of its own, so two values with the same slots in another order share all rows but are not the
-- same to it; these are. members: the hottest first.
CREATE OR REPLACE MACRO inseparable(n := num_slots()) AS TABLE
    WITH found AS (FROM value_slots(n) QUALIFY count(*) OVER (PARTITION BY feature, slots) > 1)
    SELECT feature, slots, count(*) AS values, count(*) * (count(*) - 1) // 2 AS pairs, sum(count)::BIGINT AS count,
        list(value ORDER BY count DESC, value) AS members
    FROM found GROUP BY feature, slots;

-- A row for each 32-bit hash that several values have under one lookup: no number of slots separates them there.
CREATE OR REPLACE VIEW hash_collisions AS
    WITH found AS (FROM slots QUALIFY count(*) OVER (PARTITION BY feature, lookup, hash) > 1)
    SELECT feature, lookup, hash, count(*) AS values, count(*) * (count(*) - 1) // 2 AS pairs,
        sum(count)::BIGINT AS count, list(value ORDER BY count DESC, value) AS members
    FROM found GROUP BY feature, lookup, hash;
