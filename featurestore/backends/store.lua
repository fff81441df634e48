#!lua name=livevalue_VERSION
-- The store's atomic steps, one FUNCTION library. Redis 7 or newer, Valkey.
--
-- VERSION stands for a hash of this text, put in by redis.py: workers of two releases each call
-- their own functions, and a server without ours says "Function not found".
--
-- Every key of a call has the hash tag {p} and is declared: a slot that is on the move then refuses
-- the call before it begins (TRYAGAIN). Lua does not roll back: everything is validated before the first write. Tables are cut into chunks,
-- since `unpack` fails past about 8,000 items; MSET by 500 takes 5 µs a user, SET by SET 8
-- (1,800 users, 2.5 kB of state and 2 kB of document, Valkey 9.1).

local CHUNK = 500
local NOBODY = '\146\144\144' -- msgpack [[], []]: of an outbox entry without users and letters

-- Error reply where a key holds another type than we shall use, nil where all is well.
local function mistyped(pairs_)
  for i = 1, #pairs_, 2 do
    local found = redis.call('TYPE', pairs_[i]).ok
    if found ~= 'none' and found ~= pairs_[i + 1] then
      return redis.error_reply('LVTYPE ' .. pairs_[i] .. ' holds a ' .. found .. ', not a ' .. pairs_[i + 1])
    end
  end
end

local function call_chunked(command, first, values, step)
  for from = 1, #values, step do
    local to = math.min(from + step - 1, #values)
    if first then
      redis.call(command, first, unpack(values, from, to))
    else
      redis.call(command, unpack(values, from, to))
    end
  end
end

-- keys: watermark, active, outbox. argv: new token, store. -> watermark (flat), outbox entries.
local function claim(keys, argv)
  local wrong = mistyped({keys[1], 'hash', keys[2], 'string', keys[3], 'list'})
  if wrong then return wrong end
  local dropping = redis.call('HGET', keys[1], 'dropping')
  if dropping then return redis.error_reply('LVDROPPING ' .. dropping) end
  local active = redis.call('GET', keys[2])
  local entries = {}
  -- The outbox belongs to the active store's writer: nobody else publishes from it.
  if not active or active == argv[2] then
    entries = redis.call('LRANGE', keys[3], 0, -1)
  end
  redis.call('HSET', keys[1], 'token', argv[1])
  return {redis.call('HGETALL', keys[1]), entries}
end

-- keys: watermark, due, active, seq, outbox, ranking, stores; one state key a user; one document
-- key a user whose kind is not '-'.
-- argv: 1 token, 2 store, 3 publishes, expected 4 positions 5 seq 6 writer, 7 log, 8 new seq,
-- 9 published seq, 10 outbox entry, 11 length of the state keys' prefix, 12 users, 13 kinds,
-- 14 ranks, 15 dues (little-endian doubles, NaN = none), 16 number of watermark fields F; F names
-- and values; one state a user ('' = delete); one document a user of kind 's' or 'S'.
-- Kinds: '-' leave the document, 'd' delete it and its rank, 's' set it, 'S' set it and its rank.
local function commit(keys, argv)
  local byte, sub, double = string.byte, string.sub, struct.unpack
  local users, fields = tonumber(argv[12]), tonumber(argv[16])
  local seq, published, prefix = tonumber(argv[8]), tonumber(argv[9]), tonumber(argv[11])
  if not (users and fields and seq and published and prefix) then return redis.error_reply('LVINVALID counts') end
  local kinds, ranks, dues = argv[13], argv[14], argv[15]
  if #kinds ~= users or #ranks ~= 8 * users or #dues ~= 8 * users then
    return redis.error_reply('LVINVALID columns')
  end
  local documents, sets, values = 0, 0, {}
  for i = 1, users do
    local kind = byte(kinds, i)
    if kind == 115 or kind == 83 then -- 's', 'S'
      documents = documents + 1
      sets = sets + 1
      if kind == 83 then
        local rank = double('<d', ranks, 8 * i - 7)
        if rank - rank ~= 0 then return redis.error_reply('LVINVALID rank') end
        values[i] = rank
      end
    elseif kind == 100 then -- 'd'
      documents = documents + 1
    elseif kind ~= 45 then
      return redis.error_reply('LVINVALID kind')
    end
  end
  local at = 16 + 2 * fields
  if #keys ~= 7 + users + documents or #argv ~= at + users + sets then
    return redis.error_reply('LVINVALID arguments')
  end
  local wrong = mistyped({keys[1], 'hash', keys[2], 'zset', keys[3], 'string', keys[4], 'string',
    keys[5], 'list', keys[6], 'zset', keys[7], 'set'})
  if wrong then return wrong end

  local publishes = argv[3] == '1'
  local mark = redis.call('HMGET', keys[1], 'token', 'positions', 'seq', 'writer', 'log', 'published', 'dropping')
  local active = redis.call('GET', keys[3])
  if mark[7] then return redis.error_reply('LVDROPPING ' .. mark[7]) end
  if mark[1] ~= argv[1] then return 'FENCED' end
  -- Flipped away under its writer: who publishes is now the other store's writer.
  if publishes and active and active ~= argv[2] then return 'FENCED' end
  if not publishes and active == argv[2] then return redis.error_reply('LVACTIVE refused') end
  -- A store that was built from files alone follows no log yet: the first one is its log.
  if mark[2] and mark[5] ~= '' and mark[5] ~= argv[7] then return 'RESET' end
  if (mark[2] or '') ~= argv[4] or (mark[3] or '') ~= argv[5] or (mark[4] or '') ~= argv[6] then
    return 'STALE'
  end
  if publishes and seq <= (tonumber(redis.call('GET', keys[4]) or '0') or 0) then return 'STALE' end
  -- What trim has written is newer than what a commit in flight believed.
  local newer = (tonumber(string.match(mark[6] or '', '^%d+')) or -1) > published

  -- From here on nothing can fail.
  local set, due, undue, rank, gone, unrank = {}, {}, {}, {}, {}, {}
  local sets_, dues_, undues_, ranks_ = 0, 0, 0, 0 -- counted, since # searches
  local document, text = 7 + users, at + users
  for i = 1, users do
    local key, state = keys[7 + i], argv[at + i]
    local user = sub(key, prefix + 1)
    if state == '' then
      gone[#gone + 1] = key
    else
      set[sets_ + 1], set[sets_ + 2] = key, state
      sets_ = sets_ + 2
    end
    local when = double('<d', dues, 8 * i - 7)
    if when == when then
      due[dues_ + 1], due[dues_ + 2] = when, user
      dues_ = dues_ + 2
    else
      undues_ = undues_ + 1
      undue[undues_] = user
    end
    local kind = byte(kinds, i)
    if kind == 100 then
      document = document + 1
      gone[#gone + 1] = keys[document]
      unrank[#unrank + 1] = user
    elseif kind ~= 45 then
      document, text = document + 1, text + 1
      set[sets_ + 1], set[sets_ + 2] = keys[document], argv[text]
      sets_ = sets_ + 2
      if kind == 83 then
        rank[ranks_ + 1], rank[ranks_ + 2] = values[i], user
        ranks_ = ranks_ + 2
      end
    end
  end
  call_chunked('MSET', nil, set, 2 * CHUNK)
  call_chunked('UNLINK', nil, gone, CHUNK)
  call_chunked('ZADD', keys[2], due, 2 * CHUNK)
  call_chunked('ZREM', keys[2], undue, CHUNK)
  call_chunked('ZADD', keys[6], rank, 2 * CHUNK)
  call_chunked('ZREM', keys[6], unrank, CHUNK)
  if publishes then
    redis.call('RPUSH', keys[5], argv[10])
    redis.call('SET', keys[4], argv[8])
    if not active then redis.call('SET', keys[3], argv[2]) end
  end
  redis.call('HSET', keys[1], unpack(argv, 17, at))
  if newer then redis.call('HSET', keys[1], 'published', mark[6]) end
  if not mark[2] then redis.call('SADD', keys[7], argv[2]) end
  return 'OK'
end

-- keys: watermark, active, outbox. argv: token, store, published identity as "seq:writer".
-- -> 1, or 0 when fenced. Drops the entries before the published one and keeps that one, by which
-- a later claim tells a roll-back from progress; without it in the outbox nothing is dropped.
local function trim(keys, argv)
  local wrong = mistyped({keys[1], 'hash', keys[2], 'string', keys[3], 'list'})
  if wrong then return wrong end
  if redis.call('HGET', keys[1], 'token') ~= argv[1] then return 0 end
  local active = redis.call('GET', keys[2])
  if active and active ~= argv[2] then return 0 end
  local head = argv[3] .. '\0'
  local from, found = 0, nil
  repeat
    local page = redis.call('LRANGE', keys[3], from, from + CHUNK - 1)
    for i, entry in ipairs(page) do
      if string.sub(entry, 1, #head) == head then found = from + i - 1 end
    end
    from = from + CHUNK
  until found or #page == 0
  if found and found > 0 then redis.call('LTRIM', keys[3], found, -1) end
  if redis.call('HEXISTS', keys[1], 'positions') == 1 then
    redis.call('HSET', keys[1], 'published', argv[3])
  end
  return 1
end

-- keys: our watermark, the other's, active, seq, next. argv: our token, the other's, our name,
-- the other's. The other store goes on where we stand: it takes over our last identity.
local function flip(keys, argv)
  local wrong = mistyped({keys[1], 'hash', keys[2], 'hash', keys[3], 'string', keys[4], 'string', keys[5], 'string'})
  if wrong then return wrong end
  local ours = redis.call('HMGET', keys[1], 'token', 'positions', 'seq', 'writer', 'log', 'published')
  local other = redis.call('HMGET', keys[2], 'token', 'positions', 'seq', 'writer', 'log', 'dropping')
  if redis.call('GET', keys[3]) ~= argv[3] then return 'FENCED' end
  if ours[1] ~= argv[1] or other[1] ~= argv[2] then return 'FENCED' end
  if other[6] or not ours[2] or not other[2] then return 'STALE' end
  if ours[5] ~= '' and other[5] ~= '' and ours[5] ~= other[5] then return 'RESET' end
  if ours[2] ~= other[2] then return 'STALE' end
  redis.call('HSET', keys[2], 'seq', ours[3], 'writer', ours[4], 'published', ours[6] or '')
  redis.call('SET', keys[3], argv[4])
  if redis.call('GET', keys[5]) == argv[4] then redis.call('DEL', keys[5]) end
  return 'OK'
end

-- keys: watermark, due, active, stores, then keys of states. argv: store, 'begin' | 'page' | 'end'.
-- A store half dropped is marked, so that nobody takes the rest of it for a fold.
local function drop(keys, argv)
  if redis.call('GET', keys[3]) == argv[1] then return redis.error_reply('LVACTIVE refused') end
  if argv[2] == 'begin' then
    local gone = redis.call('UNLINK', keys[1], keys[2])
    redis.call('HSET', keys[1], 'dropping', '1')
    return gone
  end
  if redis.call('HEXISTS', keys[1], 'dropping') == 0 then return redis.error_reply('LVDROPPED refused') end
  if argv[2] == 'end' then
    redis.call('UNLINK', keys[1])
    redis.call('SREM', keys[4], argv[1])
    return 0
  end
  local gone = 0
  for i = 5, #keys do gone = gone + redis.call('UNLINK', keys[i]) end
  return gone
end

-- keys: active, due, then a state each. argv: store, then per state: user, as read, as it shall be.
-- Erased users' states in a store that does not serve. -> how many were still as read.
local function forget(keys, argv)
  local wrong = mistyped({keys[1], 'string', keys[2], 'zset'})
  if wrong then return wrong end
  local replaced = 0
  if redis.call('GET', keys[1]) == argv[1] then return replaced end
  for i = 3, #keys do
    local at = 3 * (i - 3) + 2
    if redis.call('GET', keys[i]) == argv[at + 1] then
      redis.call('SET', keys[i], argv[at + 2])
      redis.call('ZREM', keys[2], argv[at])
      replaced = replaced + 1
    end
  end
  return replaced
end

-- keys: watermark, due, active, seq, outbox, ranking, stores, next, then keys of states and
-- documents. argv: 1 token, 2 store, 3 'keep' | 'begin' | 'page' | 'end', 4 seq, 5 published
-- identity as "seq:writer" or '', then names and values of the watermark's fields but seq.
-- 'keep' is one step; a wipe is begin, pages, end, and a store half wiped is marked, so that
-- nobody takes the rest of it for a fold. -> 'OK' | 'FENCED'.
local function reset(keys, argv)
  local wrong = mistyped({keys[1], 'hash', keys[2], 'zset', keys[3], 'string', keys[4], 'string',
    keys[5], 'list', keys[6], 'zset', keys[7], 'set', keys[8], 'string'})
  if wrong then return wrong end
  local step, seq = argv[3], tonumber(argv[4])
  if not seq or #argv % 2 == 0 then return redis.error_reply('LVINVALID arguments') end
  local mark = redis.call('HMGET', keys[1], 'token', 'dropping')
  -- Nobody can claim a store that was left half wiped: whoever wipes it again takes it over.
  if step == 'begin' and mark[2] then mark[1] = argv[1] end
  if mark[1] ~= argv[1] then return 'FENCED' end
  if step == 'begin' then
    redis.call('UNLINK', keys[1], keys[2], keys[5], keys[6], keys[8])
    redis.call('HSET', keys[1], 'token', argv[1], 'dropping', 'wipe')
    return 'OK'
  end
  if step == 'page' then
    if not mark[2] then return redis.error_reply('LVDROPPED refused') end
    for i = 9, #keys do redis.call('UNLINK', keys[i]) end
    return 'OK'
  end
  if (step == 'end') ~= (mark[2] == 'wipe') then return redis.error_reply('LVDROPPED refused') end
  -- seq never goes back, or a (user, revision) could come twice.
  seq = math.max(seq, tonumber(redis.call('GET', keys[4]) or '0') or 0)
  redis.call('HDEL', keys[1], 'dropping')
  redis.call('HSET', keys[1], 'seq', string.format('%d', seq), unpack(argv, 6))
  redis.call('SET', keys[4], string.format('%d', seq))
  redis.call('SET', keys[3], argv[2])
  redis.call('SADD', keys[7], argv[2])
  redis.call('UNLINK', keys[5], keys[8])
  -- An entry without users: a claim finds the published identity, and nothing after it.
  if argv[5] ~= '' then redis.call('RPUSH', keys[5], argv[5] .. '\0' .. NOBODY) end
  return 'OK'
end

redis.register_function('livevalue_commit_VERSION', commit)
-- The same step for a batch that only erases: forgetting somebody needs no free memory.
redis.register_function{function_name = 'livevalue_erase_VERSION', callback = commit, flags = {'allow-oom'}}
redis.register_function{function_name = 'livevalue_claim_VERSION', callback = claim, flags = {'allow-oom'}}
redis.register_function{function_name = 'livevalue_trim_VERSION', callback = trim, flags = {'allow-oom'}}
redis.register_function{function_name = 'livevalue_flip_VERSION', callback = flip, flags = {'allow-oom'}}
redis.register_function{function_name = 'livevalue_drop_VERSION', callback = drop, flags = {'allow-oom'}}
redis.register_function{function_name = 'livevalue_forget_VERSION', callback = forget, flags = {'allow-oom'}}
redis.register_function{function_name = 'livevalue_reset_VERSION', callback = reset, flags = {'allow-oom'}}
