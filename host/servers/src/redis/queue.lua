-- Included in all scripts. KEYS: the record, its fence counter, the queue of waiters, and the deadlines and
-- channels of the waiters.
local record, counter, queue, waiting = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

local function milliseconds()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function leave(owner)
  redis.call('ZREM', queue, owner)
  redis.call('HDEL', waiting, owner, owner .. ':to')
end

-- Returns the head waiter, after deleting the tickets before it whose deadline has passed.
local function first(now)
  while true do
    local owner = redis.call('ZRANGE', queue, 0, 0)[1]
    if not owner then return nil end
    local there = redis.call('HGET', waiting, owner)
    if there and tonumber(there) >= now then return owner end
    leave(owner)
  end
end

-- Reserves the free lock for the head waiter and notifies it; notifies also the next waiter, which tries the lock
-- by itself when the reservation has ended.
local function hand_over(now, kept)
  local owner = first(now)
  if not owner then return end
  redis.call('HSET', waiting, 'for', owner, 'until', now + kept)
  redis.call('PUBLISH', redis.call('HGET', waiting, owner .. ':to'), owner)
  local second = redis.call('ZRANGE', queue, 1, 1)[1]
  local channel = second and redis.call('HGET', waiting, second .. ':to')
  if channel then redis.call('PUBLISH', channel, second .. ' later') end
end

-- Hands a lock off that was free already: a head waiter that was notified is not notified again, and its
-- reservation is not prolonged.
local function hand_on(now, kept)
  if redis.call('HGET', waiting, 'for') ~= first(now) then hand_over(now, kept) end
end

local function last(ttl)
  if ttl == '' then redis.call('PERSIST', record) else redis.call('PEXPIRE', record, ttl) end
end
