"""The transitions of a queue on a Redis or Valkey server: Lua scripts, each atomic.

Keys
----
All begin with `iq:{name}:`, so that a cluster keeps them in one place, by the hash tag in braces::

    q        hash    the counts of the queue and its options (`v` says whose key this is)
    items    list    what is queued, the oldest first: `<producer> <tries>:<payload>`
    e:<n>    hash    an open endpoint: kind, flags, owner, maker, generation, road, hands, site
    open     set     the numbers of the open endpoints
    c:<n>:<h>:<k>  list  what hand h of endpoint n has claimed by its call k: in hand, unhanded
    hands    hash    n:h -> `k held -`: the claim of each hand that has one, how much is in hand,
                     and `a` in place of `-` where it was made of several items, one in hand;
                     `1` and the item itself where it was made of one
    ahead    set     n:h of those
    k:<c>    hash    a client (a process): its pid and host; in q, `n<c>` and `r<c>` are the number
                     of its last call and the reply to that
    beats    zset    clients, by the server's time of their last heartbeat in ms
    w:<c>    list    messages to a client, which it waits for
    wi wr we zset    clients that wait for items, room, the end
    fails    list    failures; `reason` (string): why the queue was cancelled

Of what a consumer claimed ahead, only that is in hand which it was handed: it says so by LTRIM,
without waiting for a reply, before it hands out. A claim's key has the number of the call that made
it, so a late LTRIM of an older claim finds no such key.

Calls
-----
ARGV begins with the client, the number of the call, and for how long the client wants a queue to be
kept that nobody uses, in ms: JOIN notes the longest of those, `ke` in q. All keys expire at one
moment, `xp` in q, which heartbeats put off so that it is at least as far away: if some went before
others, these would be taken for somebody else's.

A script that changes something keeps its reply with the call's number. So
the same call sent again, because its connection broke, changes nothing and has the same reply; one
that comes late, after a newer call, is refused (IQSTALE). Who was taken for dead is told so
(IQEXPIRED).

A script must do nothing if the server has no memory left, or all. So what adds items begins with a
write that the server then refuses, and all else with one that it never refuses: after that it lets
the others pass.
"""

from __future__ import annotations

from typing import Final

COMMON: Final = """
local Q = KEYS[1]
local P = string.sub(Q, 1, -2)
local call, band, bor, bnot = redis.call, bit.band, bit.bor, bit.bnot
local CLOSED, CANCELLED, ABANDONED = 1, 2, 4
local PRODUCER, CONSUMER, WORKER, QUEUE = '1', '2', '3', '4'
local USED, UNASKED, STARTED, SENT, FORKED, DROPPED, HAS_PUT = 1, 2, 4, 8, 16, 32, 64
local ITEMS, HANDS, AHEAD, OPEN, BEATS = P..'items', P..'hands', P..'ahead', P..'open', P..'beats'
local me, no = ARGV[1], tonumber(ARGV[2])
local gone_at = redis.pcall('HGET', Q, 'xp')  -- of a join, Q may be somebody's key that is no hash

local function now()
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function num(v) return tonumber(v) or 0 end

local function get(...)
  local got = call('HMGET', Q, ...)
  for i = 1, #got do got[i] = num(got[i]) end
  return unpack(got)
end

local function add(field, n) if n ~= 0 then call('HINCRBY', Q, field, n) end end

local function push(client, message)
  local key = P..'w:'..client
  if call('EXISTS', P..'k:'..client) == 1 and call('RPUSH', key, message) < 3 then
    call('PEXPIREAT', key, gone_at)
  end
end

local function wake(set, n, message)
  if n < 1 then return end
  local popped = call('ZPOPMIN', P..set, n)
  for i = 1, #popped, 2 do push(popped[i], message) end
  if set == 'wi' and #popped < 2 * n then call('HSET', Q, 'ww', 0) end
end
"""

SESSION: Final = """
local session = call('HMGET', Q, 'n'..me, 'r'..me)
if not session[1] then return redis.error_reply('IQEXPIRED') end
local last = tonumber(session[1])
if no < last then return redis.error_reply('IQSTALE') end
if no == last and session[2] ~= 'claim' then return cmsgpack.unpack(session[2]) end
local function done(reply)
  call('HSET', Q, 'n'..me, no, 'r'..me, cmsgpack.pack(reply))
  return reply
end
"""

FIRST: Final = """
call('HDEL', Q, '-')  -- the first write, which is never refused for want of memory
"""

RULES: Final = """
local function field_of(kind)
  if kind == PRODUCER then return 'pr' elseif kind == CONSUMER then return 'co' end
  return 'wo'
end

local function claim_key(hand, k) return P..'c:'..hand..':'..k end

local function claim_of(hand)
  local v = call('HGET', HANDS, hand)
  if not v then return nil end
  local k, held, mark, at = string.match(v, '^(%d+) (%d+) (.)()')
  if mark == '1' then  -- its one item is here; from now on it is where all others are
    call('RPUSH', claim_key(hand, k), string.sub(v, at))
    call('PEXPIREAT', claim_key(hand, k), gone_at)
    call('HSET', HANDS, hand, k..' 1 -')
  end
  return k, tonumber(held)
end

local function ahead()
  local n = 0
  for _, hand in ipairs(call('SMEMBERS', AHEAD)) do
    local k, held = claim_of(hand)
    if k then n = n + math.max(call('LLEN', claim_key(hand, k)) - held, 0) end
  end
  return n
end

local function tell_all(st)
  for _, client in ipairs(call('ZRANGE', BEATS, 0, -1)) do push(client, 'a '..st) end
  call('DEL', P..'wi', P..'wr', P..'we')
end

local function tell_waiting(st)
  for _, set in ipairs({'wi', 'wr', 'we'}) do
    for _, client in ipairs(call('ZRANGE', P..set, 0, -1)) do push(client, 'a '..st) end
    call('DEL', P..set)
  end
end

local function drained()
  local st, pr, bz, re = get('st', 'pr', 'bz', 're')
  if band(st, CLOSED) == 0 or pr > 0 or bz > 0 or call('LLEN', ITEMS) > 0 then return false end
  if ahead() > 0 then return false end
  return re == 0 or call('HLEN', HANDS) == 0
end

local function settle()
  local st, pr, bz, ev, co, wo = get('st', 'pr', 'bz', 'ev', 'co', 'wo')
  if band(st, CANCELLED) ~= 0 then
    tell_waiting(st)
  elseif band(st, CLOSED) ~= 0 then
    local queued = call('LLEN', ITEMS) + ahead()
    if ev > 0 and co + wo == 0 and (queued > 0 or pr > 0 or bz > 0) then
      if band(st, ABANDONED) == 0 then
        st = bor(st, ABANDONED)
        call('HSET', Q, 'st', st)
        tell_all(st)
      end
    else
      if band(st, ABANDONED) ~= 0 then
        st = band(st, bnot(ABANDONED))
        call('HSET', Q, 'st', st)
        tell_all(st)
      end
      if drained() then tell_waiting(st) end
    end
  end
end

local function back_to_front(key, n)  -- the last n items of a claim
  local cancelled = band(get('st'), CANCELLED) ~= 0
  for i = 1, n do
    local item = call('RPOP', key)
    if not item then n = i - 1 break end
    if not cancelled then call('LPUSH', ITEMS, item) end
  end
  add('tk', -n)
  if cancelled then add('dr', n)
  elseif n > 0 then
    call('PEXPIREAT', ITEMS, gone_at)
    wake('wi', n, 'i')
  end
end

local function forget_claim(hand, k)
  call('DEL', claim_key(hand, k))
  call('HDEL', HANDS, hand)
  call('SREM', AHEAD, hand)
end

-- What was in hand is finished, and the last `keep` items of the claim made by call `known` go
-- back. Of a claim that the client does not know of, since its reply was lost, all goes back.
local function finish(hand, known, keep, worker)
  local k, held = claim_of(hand)
  if not k then return 0 end
  local key = claim_key(hand, k)
  if k ~= known then keep = call('LLEN', key) end
  back_to_front(key, keep)
  forget_claim(hand, k)
  if worker then add('bz', -held) end
  return held
end

local function cancel(blob)
  local st = get('st')
  if band(st, CANCELLED) ~= 0 then return end
  if blob ~= '' then
    call('SET', P..'reason', blob)
    call('PEXPIREAT', P..'reason', gone_at)
  end
  st = bor(st, bor(CANCELLED, CLOSED))
  call('HSET', Q, 'st', st)
  local dropped = call('LLEN', ITEMS)
  for _, hand in ipairs(call('SMEMBERS', AHEAD)) do
    local k, held = claim_of(hand)
    if k then
      local left = math.max(call('LLEN', claim_key(hand, k)) - held, 0)
      if left > 0 then call('LTRIM', claim_key(hand, k), 0, held - 1) end
      add('tk', -left)
      dropped = dropped + left
    end
  end
  add('dr', dropped)
  call('DEL', ITEMS, AHEAD)
  tell_all(st)
end

local function forget_endpoint(n, kind, flags)
  call('DEL', P..'e:'..n)
  call('SREM', OPEN, n)
  if kind == QUEUE then
    local st = bor(get('st'), CLOSED)
    call('HSET', Q, 'st', st)
    tell_all(st)
  else
    add(field_of(kind), -1)
    if kind == WORKER and band(flags, UNASKED) ~= 0 then add('bz', -1) end
  end
  settle()
end

local function record(blob)
  if band(get('st'), CANCELLED) ~= 0 then return end
  call('RPUSH', P..'fails', blob)
  call('PEXPIREAT', P..'fails', gone_at)
  add('fa', 1)
  if get('cf') == 1 then cancel(blob) end
end

local function name_of(client)
  local k = call('HMGET', P..'k:'..client, 'pid', 'host')
  if not k[1] then return '' end
  return ' (pid '..k[1]..' on '..(k[2] or '?')..')'
end

local KINDS = {'producer', 'consumer', 'worker'}
local function told(n, kind, site, client, how)
  local made = 'made at '..site..name_of(client)
  local what = kind == QUEUE and 'the queue '..made or
    KINDS[tonumber(kind)]..' '..n..', '..made..','
  return 't'..what..' '..how
end

-- An endpoint whose process has died.
local function bury(n, how)
  local e = call('HMGET', P..'e:'..n, 'k', 'f', 's', 'o', 'm', 'hn')
  local kind, flags = e[1], num(e[2])
  local re, st = get('re', 'st')
  local worker = kind == WORKER
  local short = worker and band(flags, UNASKED) ~= 0 and (re == 0 or band(flags, HAS_PUT) ~= 0)
  for h = 0, num(e[6]) - 1 do
    local hand = n..':'..h
    local k, held = claim_of(hand)
    if k then
      local key = claim_key(hand, k)
      back_to_front(key, math.max(call('LLEN', key) - held, 0))
      for i = 1, call('LLEN', key) do
        local item = call('RPOP', key)
        local who, tries, at = string.match(item, '^(%d+) (%d+):()')
        if re > 0 and tonumber(tries) + 1 < re and band(st, CANCELLED) == 0 then
          call('LPUSH', ITEMS, who..' '..(tries + 1)..':'..string.sub(item, at))
          call('PEXPIREAT', ITEMS, gone_at)
          add('rt', 1)
          add('rd', 1)
          wake('wi', 1, 'i')
        else
          add('lo', 1)
          short = short or worker
        end
      end
      forget_claim(hand, k)
      if worker then add('bz', -held) end
    end
  end
  if kind == PRODUCER or kind == QUEUE or short then
    record(told(n, kind, e[3], e[4] ~= '0' and e[4] or e[5], how))
  end
  forget_endpoint(n, kind, flags)
end

local function lives(client) return call('EXISTS', P..'k:'..client) == 1 end

local function forget_client(client)
  call('DEL', P..'k:'..client, P..'w:'..client)
  call('HDEL', Q, 'n'..client, 'r'..client)
  call('ZREM', BEATS, client)
  for _, set in ipairs({'wi', 'wr', 'we'}) do call('ZREM', P..set, client) end
end

-- A client has died: its endpoints end, and those that only it could have handed on.
local function mend(client, how)
  if not lives(client) then return end
  for _, n in ipairs(call('SMEMBERS', OPEN)) do
    local e = call('HMGET', P..'e:'..n, 'k', 'f', 's', 'o', 'm', 'r')
    if e[1] then
      if e[4] == client or (e[1] == QUEUE and e[5] == client) then
        bury(n, how)
      elseif e[4] == '0' and (e[5] == client or e[6] == client) then
        local flags = num(e[2])
        local made = e[5] ~= client and lives(e[5]) and band(flags, DROPPED) == 0
        local sent = band(flags, SENT) ~= 0 and e[6] ~= client and lives(e[6])
        if not made and not sent then
          bury(n, 'was never taken: the process that could have handed it on '..how)
        end
      end
    end
  end
  forget_client(client)
  settle()
end

local function over()
  local st = get('st')
  if band(st, bor(CANCELLED, ABANDONED)) ~= 0 then return true end
  return drained() and call('HLEN', HANDS) == 0
end

local function remove()
  for _, n in ipairs(call('SMEMBERS', OPEN)) do
    local hn = num(call('HGET', P..'e:'..n, 'hn'))
    for h = 0, hn - 1 do
      local k = claim_of(n..':'..h)
      if k then call('DEL', claim_key(n..':'..h, k)) end
    end
    call('DEL', P..'e:'..n)
  end
  for _, client in ipairs(call('ZRANGE', BEATS, 0, -1)) do
    call('DEL', P..'k:'..client, P..'w:'..client)
  end
  call('DEL', Q, ITEMS, HANDS, AHEAD, OPEN, BEATS, P..'wi', P..'wr', P..'we', P..'fails',
    P..'reason')
end

local function renew(ms)  -- all keys stay for so long
  gone_at = now() + math.floor(ms)
  call('HSET', Q, 'xp', gone_at)
  for _, key in ipairs({'q', 'items', 'hands', 'ahead', 'open', 'beats', 'wi', 'wr', 'we', 'fails',
      'reason'}) do
    call('PEXPIREAT', P..key, gone_at)
  end
  for _, client in ipairs(call('ZRANGE', BEATS, 0, -1)) do
    call('PEXPIREAT', P..'k:'..client, gone_at)
    call('PEXPIREAT', P..'w:'..client, gone_at)
  end
  for _, n in ipairs(call('SMEMBERS', OPEN)) do call('PEXPIREAT', P..'e:'..n, gone_at) end
  local all = call('HGETALL', HANDS)
  for i = 1, #all, 2 do
    call('PEXPIREAT', claim_key(all[i], string.match(all[i + 1], '^%d+')), gone_at)
  end
end

local function mine(e)  -- owner, maker
  return e[1] == me or (e[1] == '0' and e[2] == me)
end
"""


def _script(*parts: str) -> str:
    return "".join(parts)


JOIN: Final = _script(
    COMMON,
    "local kind_of = call('TYPE', Q).ok\n",
    RULES,
    """
-- version, pid, host, token, options: maxsize, cancel on failure, deliveries; format, site, expiry
-- in ms, whether it is by the name, the identity that the queue must have (nothing: make one, if
-- there is none; any: whichever there is), one for a new queue
local version, pid, host, token = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local maxsize, cancels, deliveries, format, site = ARGV[8], ARGV[9], ARGV[10], ARGV[11], ARGV[12]
local expiry, handle, id, new_id = tonumber(ARGV[13]), ARGV[14] == '1', ARGV[15], ARGV[16]
if kind_of ~= 'none' and kind_of ~= 'hash' then return redis.error_reply('IQFOREIGN '..Q) end
local t = now()
if kind_of == 'hash' then
  local v = call('HGET', Q, 'v')
  if not v then return redis.error_reply('IQFOREIGN '..Q) end
  if v ~= version then return redis.error_reply('IQVERSION '..v) end
  -- A script that was refused a command in its midst has left half of one, with nobody in it.
  if not call('HGET', Q, 'maker') then
    remove()
    call('DEL', P..'k:1', P..'e:0')
    kind_of = 'none'
  end
end
if kind_of == 'hash' then
  if id ~= '' and id ~= 'any' and call('HGET', Q, 'id') ~= id then
    return redis.error_reply('IQGONE')
  end
  -- Everybody has left, or was killed after the end.
  if call('ZCOUNT', BEATS, t - math.max(get('ex'), expiry), '+inf') == 0 and over() then
    remove()
    kind_of = 'none'
  end
end
if kind_of == 'none' and id ~= '' then
  return redis.error_reply(id == 'any' and 'IQNONE' or 'IQGONE')
end
if me ~= '0' and not lives(me) then return redis.error_reply('IQEXPIRED') end
if kind_of == 'none' then
  for _, key in ipairs({'items', 'hands', 'ahead', 'open', 'beats', 'wi', 'wr', 'we', 'fails',
      'reason', 'e:0', 'k:1', 'w:1'}) do
    if call('EXISTS', P..key) == 1 then return redis.error_reply('IQFOREIGN '..P..key) end
  end
else
  local had = call('HMGET', Q, 'ms', 'cf', 're', 'format')
  local asked = {maxsize, cancels, deliveries, format}
  for i, name in ipairs({'maxsize', 'on_failure', 'redeliver', 'serializer'}) do
    if asked[i] ~= '' and asked[i] ~= had[i] then
      return redis.error_reply('IQOTHER '..name..' '..had[i])
    end
  end
end
local made = kind_of == 'none'
if made then
  local function or_zero(text) return text == '' and '0' or text end
  -- What each PUT and TAKE reads comes first: the server seeks fields from the beginning of a small
  -- hash on, one after the other.
  call('HSET', Q, 'st', 0, 'ms', or_zero(maxsize), 'xp', 0, 'hi', 0, 'tk', 0, 'ww', 0, 'co', 0,
    'wo', 0, 're', or_zero(deliveries), 'v', version, 'cf', or_zero(cancels), 'format', format,
    'site', site, 'made', t, 'nu', 0, 'la', t, 'am', 0, 'ha', 0, 'id', new_id)
end
local keep = math.max(get('ke'), tonumber(ARGV[3]))
if get('ke') < keep then call('HSET', Q, 'ke', keep) end
if call('PTTL', Q) < keep then renew(1.5 * keep) end
if get('ex') < expiry then call('HSET', Q, 'ex', expiry) end
local client = me ~= '0' and me or nil  -- another handle in a process that takes part
if client and handle then call('HSET', Q, 'ha', 0) end
-- Sent again: it has joined before.
for _, other in ipairs(call('ZRANGE', BEATS, 0, -1)) do
  if call('HGET', P..'k:'..other, 'token') == token then
    client = other
    made = call('HGET', Q, 'maker') == client
  end
end
if not client then
  client = call('HINCRBY', Q, 'cl', 1)
  call('HSET', P..'k:'..client, 'pid', pid, 'host', host, 'token', token)
  call('HSET', Q, 'n'..client, 0, 'r'..client, '')
  call('PEXPIREAT', P..'k:'..client, gone_at)
  call('ZADD', BEATS, t, client)
  call('PEXPIREAT', BEATS, gone_at)
  if made then
    call('HSET', Q, 'maker', client, 'ha', client, 'mpid', pid, 'mhost', host)
    call('HSET', P..'e:0', 'k', QUEUE, 'f', 0, 's', site, 'o', 0, 'm', client, 'g', 0, 't', t)
    call('PEXPIREAT', P..'e:0', gone_at)
    call('SADD', OPEN, 0)
    call('PEXPIREAT', OPEN, gone_at)
  elseif handle then
    call('HSET', Q, 'ha', 0)
  end
end
return {tonumber(client), made and 1 or 0,
  call('HMGET', Q, 'ms', 'st', 're', 'mpid', 'mhost', 'id', 'format', 'site')}
""",
)
"""A process takes part; the queue is made if there is none."""

HEIR: Final = _script(
    COMMON,
    SESSION,
    """
call('HDEL', Q, '-')
local client = call('HINCRBY', Q, 'cl', 1)
call('HSET', P..'k:'..client, 'pid', 0, 'host', ARGV[4])
call('HSET', Q, 'n'..client, 0, 'r'..client, '')
call('PEXPIREAT', P..'k:'..client, gone_at)
-- It may take its time to start.
call('ZADD', BEATS, now() + 10000, client)
return done({client})
""",
)
"""A client for a process that is being started."""

ADOPT: Final = _script(
    COMMON,
    """
if call('EXISTS', P..'k:'..me) == 0 then return redis.error_reply('IQEXPIRED') end
if ARGV[4] ~= '0' then call('HSET', P..'k:'..me, 'pid', ARGV[4]) end
return {1, 0, call('HMGET', Q, 'ms', 'st', 're', 'mpid', 'mhost', 'id', 'format', 'site')}
""",
)
"""That process is there, or its pid is known."""

OPEN: Final = _script(
    COMMON,
    SESSION,
    FIRST,
    RULES,
    """
local kind, site, clone = ARGV[4], ARGV[5], ARGV[6] == '1'
local st = get('st')
if band(st, CANCELLED) ~= 0 then return done({-1, st}) end
if not clone and kind ~= CONSUMER and band(st, CLOSED) ~= 0 then return done({-2, st}) end
if kind == CONSUMER and band(st, ABANDONED) ~= 0 then return done({-1, st}) end
local n = call('HINCRBY', Q, 'nu', 1)
local flags = kind == WORKER and UNASKED or 0
call('HSET', P..'e:'..n, 'k', kind, 'f', flags, 's', site, 'o', 0, 'm', me, 'g', 0, 't', now())
call('PEXPIREAT', P..'e:'..n, gone_at)
call('SADD', OPEN, n)
call('PEXPIREAT', OPEN, gone_at)
add(field_of(kind), 1)
if kind == WORKER then add('bz', 1) end
if kind ~= PRODUCER then add('ev', 1) end
return done({n, st})
""",
)
"""A new endpoint."""

TAKE_OVER: Final = _script(
    COMMON,
    SESSION,
    """
call('HDEL', Q, '-')
local n, generation, uses = ARGV[4], ARGV[5], ARGV[6] == '1'
local e = call('HMGET', P..'e:'..n, 'o', 'g', 'f')
if not e[1] then return done({0}) end
local flags = num(e[3])
if e[1] ~= me then
  if band(flags, USED) ~= 0 then return done({0}) end
  if generation == '' then
    if e[1] ~= '0' then return done({0}) end
  elseif e[2] ~= generation then
    return done({0})
  end
  flags = band(flags, bnot(bor(DROPPED, SENT, FORKED)))
  call('HINCRBY', P..'e:'..n, 'g', 1)
end
if uses then flags = bor(flags, USED) end
call('HSET', P..'e:'..n, 'o', me, 'f', flags, 't', now())
return done({1})
""",
)
"""This process takes an endpoint, and marks it as used if it is about to."""

SEND: Final = _script(
    COMMON,
    SESSION,
    """
call('HDEL', Q, '-')
local n, flag = ARGV[4], tonumber(ARGV[5])
if n == '0' then
  call('HSET', Q, 'ha', 0)
  return done({1, 0})
end
local e = call('HMGET', P..'e:'..n, 'o', 'm', 'g', 'f')
if not e[1] then return done({0}) end
if not (e[1] == me or (e[1] == '0' and e[2] == me)) then return done({-1}) end
local flags = num(e[4])
if band(flags, USED) ~= 0 then return done({-2}) end
if flag > 0 then
  call('HSET', P..'e:'..n, 'f', bor(flags, flag))
  if flag == SENT then call('HSET', P..'e:'..n, 'r', me) end
end
return done({1, tonumber(e[3])})
""",
)
"""A copy of an endpoint goes off."""

UNUSED: Final = """
-- The flags of an endpoint that is this process's, or nobody's and made here, and that nobody has
-- used; else nil.
local function unused(key)
  local e = call('HMGET', key, 'o', 'm', 'f')
  local flags = num(e[3])
  if e[1] and (e[1] == me or (e[1] == '0' and e[2] == me)) and band(flags, USED) == 0 then
    return flags
  end
end
"""

MARK: Final = _script(
    COMMON,
    SESSION,
    UNUSED,
    """
call('HDEL', Q, '-')
call('HSET', Q, 'ha', 0)
for i = 4, #ARGV do
  local key = P..'e:'..ARGV[i]
  local flags = unused(key)
  if flags then
    call('HSET', key, 'f', bor(flags, FORKED))
  end
end
return done({1})
""",
)
"""This process forks: the child may hold the queue, and these endpoints."""

ASSIGN: Final = _script(
    COMMON,
    SESSION,
    UNUSED,
    """
call('HDEL', Q, '-')
local client, pid = ARGV[4], ARGV[5]
if call('EXISTS', P..'k:'..client) == 0 then return done({0}) end
if pid ~= '0' then call('HSET', P..'k:'..client, 'pid', pid) end
for i = 6, #ARGV do
  local key = P..'e:'..ARGV[i]
  local flags = unused(key)
  if flags then
    call('HSET', key, 'o', client, 'f', bor(band(flags, bnot(bor(SENT, FORKED))), STARTED))
    call('HINCRBY', key, 'g', 1)
  end
end
return done({1})
""",
)
"""Endpoints belong to a process that is being started with them."""

ADRIFT: Final = _script(
    COMMON,
    SESSION,
    """
call('HDEL', Q, '-')
local key = P..'e:'..ARGV[4]
if call('EXISTS', key) == 1 then
  call('HSET', key, 'o', 0, 'f', bor(num(call('HGET', key, 'f')), DROPPED))
end
return done({1})
""",
)
"""The copy here has gone, but others may hold one."""

PUT: Final = _script(
    """
-- endpoint, kind, whether it waits, then items. Returns 8 times how many were put, or why none may
-- be, plus the state. That this client lives shows that its endpoint is open.
local q = redis.call('HMGET', KEYS[1], 'n'..ARGV[1], 'st', 'ms', 'hi', 'ww', 'xp')
if q[1] and tonumber(q[1]) < tonumber(ARGV[2]) and tonumber(q[2]) < 2 and q[3] == '0'
    and q[5] ~= '1' and ARGV[5] == '1' then
  -- What is usual, by the shortest way: it is a third of what the rest of this would take.
  local items, count = string.sub(KEYS[1], 1, -2)..'items', #ARGV - 6
  local size
  if count == 1 then size = redis.call('RPUSH', items, ARGV[7])
  else size = redis.call('RPUSH', items, unpack(ARGV, 7)) end
  if size == count then redis.call('PEXPIREAT', items, q[6]) end
  local reply = 8 * count + tonumber(q[2])
  local n, r, packed = 'n'..ARGV[1], 'r'..ARGV[1], cmsgpack.pack(reply)
  if size > tonumber(q[4] or 0) then
    redis.call('HSET', KEYS[1], n, ARGV[2], r, packed, 'hi', size)
  else redis.call('HSET', KEYS[1], n, ARGV[2], r, packed) end
  return reply
end
""",
    COMMON,
    SESSION,
    RULES,
    """
local n, worker = ARGV[4], ARGV[5] == '3'
local st, maxsize = num(q[2]), num(q[3])
if st > CLOSED then return -8 + st end
local first, count, flags = 7, #ARGV - 6, 0
if worker then
  if drained() then return -16 + st end
  flags = num(call('HGET', P..'e:'..n, 'f'))
elseif maxsize > 0 then
  count = math.min(count, maxsize - call('LLEN', ITEMS))
  if count < 1 then
    if ARGV[6] == '1' then
      call('ZADD', P..'wr', 'NX', now(), me)
      call('PEXPIREAT', P..'wr', gone_at)
    end
    return st
  end
end
local size = call('RPUSH', ITEMS, unpack(ARGV, first, first + count - 1))
if size == count then call('PEXPIREAT', ITEMS, gone_at) end
if size > num(q[4]) then call('HSET', Q, 'hi', size) end
if band(flags, UNASKED) ~= 0 then call('HSET', P..'e:'..n, 'f', bor(flags, HAS_PUT)) end
if q[5] == '1' then wake('wi', count, 'i') end
return done(8 * count + st)
""",
)
"""Put items, as many as there is room for."""

TAKE: Final = _script(
    """
-- endpoint, kind, hand, the claim known, how much of it goes back, mode, pace, most bytes, whether
-- it waits, whether the hand is new
local q = redis.call('HMGET', KEYS[1], 'n'..ARGV[1], 'st', 'ms', 'co', 'wo', 'tk', 'xp')
local mode, limit, most = ARGV[9], tonumber(ARGV[10]), tonumber(ARGV[11])
local hand = ARGV[4]..':'..ARGV[6]

local function claim(prefix, was_ahead)
  local items = prefix..'items'
  local takers = tonumber(q[4] or 0) + tonumber(q[5] or 0)
  if mode == 'claim' then
    if q[3] ~= '0' then limit = 1
    elseif takers > 1 and limit > 1 then
      local queued = redis.call('LLEN', items)
      limit = queued <= 64 and 1 or math.max(math.min(limit, math.floor(queued / takers)), 1)
    end
  end
  local item = redis.call('LPOP', items)
  if not item then return nil end
  local reply, got, bytes = {1, tonumber(q[2]), item}, 1, #item
  local key
  while got < limit and bytes < most do
    local block = redis.call('LPOP', items, math.min(limit - got, 32))
    if not block then break end
    if not key then
      key = prefix..'c:'..hand..':'..ARGV[2]
      redis.call('RPUSH', key, item)
    end
    redis.call('RPUSH', key, unpack(block))
    for i = 1, #block do
      reply[got + i + 2] = block[i]
      bytes = bytes + #block[i]
    end
    got = got + #block
  end
  local held, value = mode == 'claim' and 1 or got, nil
  if key then
    redis.call('PEXPIREAT', key, q[7])
    value = ARGV[2]..' '..held..(got > held and ' a' or ' -')
  else
    value = ARGV[2]..' 1 1'..item
  end
  if redis.call('HSET', prefix..'hands', hand, value) == 1 then
    redis.call('PEXPIREAT', prefix..'hands', q[7])
  end
  if (got > held) ~= was_ahead then
    if was_ahead then redis.call('SREM', prefix..'ahead', hand)
    else
      redis.call('SADD', prefix..'ahead', hand)
      redis.call('PEXPIREAT', prefix..'ahead', q[7])
    end
  end
  if ARGV[13] == '1' then
    local e = prefix..'e:'..ARGV[4]
    if tonumber(redis.call('HGET', e, 'hn') or 0) <= tonumber(ARGV[6]) then
      redis.call('HSET', e, 'hn', ARGV[6] + 1)
    end
  end
  redis.call('HSET', KEYS[1], 'n'..ARGV[1], ARGV[2], 'r'..ARGV[1], 'claim',
    'tk', tonumber(q[6] or 0) + got)
  return reply, got, held
end

-- What is usual: all of the last claim was handed out, there is more, and nobody waits for room.
if q[1] and tonumber(q[1]) < tonumber(ARGV[2]) and tonumber(q[2]) < 2 and q[3] == '0'
    and ARGV[5] ~= '3' and ARGV[8] == '0' then
  local prefix = string.sub(KEYS[1], 1, -2)
  local v = redis.call('HGET', prefix..'hands', hand)
  if not v then
    local reply = claim(prefix, false)
    if reply then return reply end
  else
    local was, mark = string.match(v, '^(%d+) %d+ (.)')
    if was == ARGV[7] and redis.call('EXISTS', prefix..'items') == 1 then
      if mark ~= '1' then redis.call('DEL', prefix..'c:'..hand..':'..was) end
      return claim(prefix, mark == 'a')
    end
  end
end
""",
    COMMON,
    SESSION,
    FIRST,
    RULES,
    """
local n, worker, known, keep = ARGV[4], ARGV[5] == '3', ARGV[7], tonumber(ARGV[8])
if no == last then
  local k = claim_of(hand)
  local reply = {1, get('st')}  -- and not `unpack`, which has room for 8,000
  for _, item in ipairs(call('LRANGE', claim_key(hand, k), 0, -1)) do reply[#reply + 1] = item end
  return reply
end
local st = num(q[2])
if band(st, CANCELLED) ~= 0 then return done({-1, st}) end
local finished = finish(hand, known, keep, worker)
if worker then
  local flags = num(call('HGET', P..'e:'..n, 'f'))
  if band(flags, UNASKED) ~= 0 then
    call('HSET', P..'e:'..n, 'f', band(flags, bnot(bor(UNASKED, HAS_PUT))))
    add('bz', -1)
    finished = finished + 1
  end
end
q[6] = call('HGET', Q, 'tk')  -- which `finish` may have changed
local reply, got, held = claim(P, false)
if reply then
  if worker then add('bz', held) end
  if q[3] ~= '0' then wake('wr', got, 'r') end
  return reply
end
if finished > 0 then settle() end
if drained() then return done({-2, get('st')}) end
if ARGV[12] == '1' then
  call('ZADD', P..'wi', 'NX', now(), me)
  call('PEXPIREAT', P..'wi', gone_at)
  call('HSET', Q, 'ww', 1)
  -- Whoever has claimed most gives half of it back.
  local victim, size, made
  for _, other in ipairs(call('SMEMBERS', AHEAD)) do
    local k, held = claim_of(other)
    if k then
      local left = call('LLEN', claim_key(other, k)) - held
      if left > (size or 0) then victim, size, made = other, left, k end
    end
  end
  if victim then
    local owner = call('HGET', P..'e:'..string.match(victim, '^%d+'), 'o')
    if owner then push(owner, 'c '..string.gsub(victim, ':', ' ')..' '..made) end
  end
end
return done({0, st})
""",
)
"""Finish what a hand holds, and claim more. Returns 1, the state and items; or why not."""

CUT: Final = _script(
    COMMON,
    SESSION,
    FIRST,
    RULES,
    """
-- hand, its claim, how many items of it are left, the one in hand included; how many go back
local hand, k, left, count = ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
if band(get('st'), CANCELLED) == 0 then  -- which has left there only what is in hand
  local key = claim_key(hand, k)
  call('LTRIM', key, -left, -1)
  back_to_front(key, count)
  settle()
end
return done({1})
""",
)
"""A part of what was claimed ahead goes back."""

KEEP: Final = _script(
    COMMON,
    SESSION,
    """
call('LTRIM', P..'c:'..ARGV[4]..':'..ARGV[5], -tonumber(ARGV[6]), -1)
return done({num(call('HGET', Q, 'st'))})
""",
)
"""So many items of a claim are left, the one about to be handed out included; are we alive?"""

CLOSE: Final = _script(
    COMMON,
    SESSION,
    FIRST,
    RULES,
    """
-- endpoint, failure or ''; then of each hand that this process knows: its number, its claim, and
-- how much of that goes back
local n, blob = ARGV[4], ARGV[5]
local e = call('HMGET', P..'e:'..n, 'k', 'f', 'hn', 'o', 'm')
if not e[1] then return done({0, get('st')}) end
if not mine({e[4], e[5]}) then return done({-3, get('st')}) end
local known = {}
for i = 6, #ARGV, 3 do known[ARGV[i]] = {ARGV[i + 1], tonumber(ARGV[i + 2])} end
for h = 0, num(e[3]) - 1 do
  local k = known[tostring(h)] or {'', 0}
  finish(n..':'..h, k[1], k[2], e[1] == WORKER)
end
if blob ~= '' then record(blob) end
forget_endpoint(n, e[1], num(e[2]))
return done({1, get('st')})
""",
)
"""An endpoint (or the queue itself, number 0) closes, or fails."""

SHUT: Final = _script(
    COMMON,
    SESSION,
    FIRST,
    RULES,
    """
if ARGV[4] == 'dropped' and call('HGET', Q, 'ha') ~= me then return done({0, get('st')}) end
local e = call('HMGET', P..'e:0', 'k', 'f')
if e[1] then forget_endpoint('0', QUEUE, 0)
elseif band(get('st'), CLOSED) == 0 then
  local st = bor(get('st'), CLOSED)
  call('HSET', Q, 'st', st)
  tell_all(st)
  settle()
end
return done({1, get('st')})
""",
)
"""No further producers or workers. One who only drops the queue may say so if it is alone."""

CANCEL: Final = _script(
    COMMON, SESSION, FIRST, RULES, "cancel(ARGV[4])\nreturn done({1, get('st')})\n"
)
"""Stop now."""

WAITS: Final = _script(
    COMMON,
    SESSION,
    FIRST,
    RULES,
    """
local st, fa, lo = get('st', 'fa', 'lo')
if band(st, bor(CANCELLED, ABANDONED)) ~= 0 then return {-1, st} end
if drained() and call('HLEN', HANDS) == 0 then return {1, st, fa, lo} end
call('ZADD', P..'we', 'NX', now(), me)
call('PEXPIREAT', P..'we', gone_at)
return {0, st}
""",
)
"""Whether everything is finished, for join. If not, the client is told when it may be."""

AGAIN: Final = _script(
    COMMON,
    """
-- for whom the client was woken: 'i' or 'r'; whether somebody of it still waits
local what, waits = ARGV[4], ARGV[5] == '1'
if call('EXISTS', P..'k:'..me) == 0 then return 0 end
local more
if what == 'i' then more = call('LLEN', ITEMS)
else more = num(call('HGET', Q, 'ms')) - call('LLEN', ITEMS) end
if waits then
  if more > 0 then return 1 end
  local set = P..(what == 'i' and 'wi' or 'wr')
  call('ZADD', set, 'NX', now(), me)
  call('PEXPIREAT', set, gone_at)
  if what == 'i' then call('HSET', Q, 'ww', 1) end
elseif more > 0 then
  wake(what == 'i' and 'wi' or 'wr', 1, what)
end
return 0
""",
)
"""After a wake-up: somebody else of this client waits, or it was meant for another client."""

BEAT: Final = _script(
    COMMON,
    FIRST,
    RULES,
    """
-- expiry in ms; then clients for which this one answers
local t, expiry = now(), math.max(tonumber(ARGV[4]), get('ex'))
if not lives(me) then return redis.error_reply('IQEXPIRED') end
call('ZADD', BEATS, 'XX', t, me)
for i = 5, #ARGV do call('ZADD', BEATS, 'XX', 'GT', t, ARGV[i]) end
local last, amnesty = get('la', 'am')
if t - last > expiry / 2 then
  -- Nobody was heard for so long, so it was the server that stood still: nobody is dead for that.
  amnesty = t
  call('HSET', Q, 'am', t)
end
call('HSET', Q, 'la', t)
local dead = 0
if t - amnesty > expiry then
  for _, client in ipairs(call('ZRANGEBYSCORE', BEATS, '-inf', t - expiry - 1, 'LIMIT', 0, 10)) do
    mend(client, 'was killed, ended by os._exit or was cut off: no sign of life has reached the '..
      'server for '..(expiry / 1000)..' s, and it was not closed')
    dead = dead + 1
  end
end
local keep = get('ke')
if call('PTTL', Q) < keep then renew(1.5 * keep) end
return {dead, num(call('HGET', Q, 'st'))}
""",
)
"""This client lives; whoever has not said so for too long is dead; the keys stay."""

DEAD: Final = _script(
    COMMON,
    SESSION,
    FIRST,
    RULES,
    """
mend(ARGV[4], ARGV[5])
return done({1})
""",
)
"""A process of this machine was seen to have ended."""

BYE: Final = _script(
    COMMON,
    SESSION,
    FIRST,
    RULES,
    """
mend(me, ARGV[4])
if call('ZCARD', BEATS) > 0 then return {0} end
if over() then
  remove()
  return {1}
end
renew(get('ke'))
return {0}
""",
)
"""This client takes part no more. The last one of a queue that is over removes it."""

SHOWN: Final = """
local key = string.sub(KEYS[1], 1, -2)..'k:'..ARGV[1]
if redis.call('EXISTS', key) == 1 then redis.call('HSET', key, 'c', ARGV[4]) end
return 0
"""
"""The number that the server gave this client's connection; sent without waiting for a reply."""

BLOCKED: Final = """
local key = string.sub(KEYS[1], 1, -2)..'e:'..ARGV[4]
if redis.call('HGET', key, 'o') == ARGV[1] then redis.call('HSET', key, 'b', ARGV[5]) end
return 0
"""
"""How many callers of an endpoint wait: for people, so sent without waiting for a reply."""

SIZE: Final = _script(
    COMMON,
    RULES,
    """
if call('EXISTS', P..'k:'..me) == 0 then return redis.error_reply('IQEXPIRED') end
return {call('LLEN', ITEMS) + ahead(), get('st')}
""",
)
"""How many items are queued."""

VIEW: Final = _script(
    COMMON,
    RULES,
    """
if call('EXISTS', P..'k:'..me) == 0 then return redis.error_reply('IQEXPIRED') end
local n = ARGV[4]
local e = call('HGETALL', P..'e:'..n)
if #e == 0 then return {} end
local f = {}
for i = 1, #e, 2 do f[e[i]] = e[i + 1] end
local held = 0
for h = 0, num(f.hn) - 1 do
  local k, count = claim_of(n..':'..h)
  held = held + (count or 0)
end
local whose = f.o ~= '0' and f.o or f.m
local client = call('HMGET', P..'k:'..whose, 'pid', 'host')
return {num(f.k), num(f.f), num(f.o), num(f.m), num(f.r), held, num(f.b), now() - num(f.t), f.s,
  num(client[1]), client[2] or ''}
""",
)
"""One endpoint, and the process that has it."""

LOOK: Final = _script(
    COMMON,
    RULES,
    """
if call('EXISTS', P..'k:'..me) == 0 then return redis.error_reply('IQEXPIRED') end
local t = now()
local ends = {}
for _, n in ipairs(call('SMEMBERS', OPEN)) do
  local e = call('HGETALL', P..'e:'..n)
  local f = {}
  for i = 1, #e, 2 do f[e[i]] = e[i + 1] end
  local held = 0
  for h = 0, num(f.hn) - 1 do
    local k, count = claim_of(n..':'..h)
    held = held + (count or 0)
  end
  ends[#ends + 1] = {num(n), num(f.k), num(f.f), num(f.o), num(f.m), num(f.r), held, num(f.b),
    t - num(f.t), f.s or ''}
end
local clients = {}
for _, c in ipairs(call('ZRANGE', BEATS, 0, -1, 'WITHSCORES')) do clients[#clients + 1] = c end
for i = 1, #clients, 2 do
  local k = call('HMGET', P..'k:'..clients[i], 'pid', 'host')
  clients[i + 1] = {num(k[1]), k[2] or '', t - tonumber(clients[i + 1])}
  clients[i] = num(clients[i])
end
local held = 0
for _, v in ipairs(call('HVALS', HANDS)) do
  held = held + tonumber(string.match(v, '^%d+ (%d+)'))
end
local queued, unhanded = call('LLEN', ITEMS), ahead()
if queued + unhanded > get('hi') then redis.pcall('HSET', Q, 'hi', queued + unhanded) end
return {call('HGETALL', Q), queued, unhanded, held, ends, clients}
""",
)
"""All that there is to be said of the queue, at one moment."""

ERRORS: Final = _script(
    COMMON,
    """
return {call('LRANGE', P..'fails', 0, -1), call('GET', P..'reason') or ''}
""",
)
"""Failures, and why the queue was cancelled."""
