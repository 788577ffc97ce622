-- ARGV: owner, lifetime of its ticket in milliseconds, the channel of its process, 1 to renew an existing ticket
-- only. Returns 1 if the owner is to try the lock now, which includes an owner whose ticket is lost.
local now, there = milliseconds(), redis.call('ZSCORE', queue, ARGV[1])
if ARGV[4] == '1' and not there then return 1 end
local holder = redis.call('HGET', record, 'owner')
if holder == ARGV[1] then return 1 end
if not holder then
  local head = first(now)
  if not head or head == ARGV[1] then return 1 end
end
if not there then
  redis.call('ZADD', queue, redis.call('HINCRBY', waiting, 'last', 1), ARGV[1])
end
redis.call('HSET', waiting, ARGV[1], now + ARGV[2], ARGV[1] .. ':to', ARGV[3])
-- An hour after the last wait, the queue and its counter are deleted.
local hour = 3600000
redis.call('PEXPIRE', queue, hour)
redis.call('PEXPIRE', waiting, hour)
return 0
