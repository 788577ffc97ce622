-- ARGV: owner, lifetime of the record in milliseconds or nothing, the ttl, the channel of its process.
if redis.call('HGET', record, 'owner') ~= ARGV[1] then return 0 end
last(ARGV[2])
redis.call('HSET', record, 'ttl', ARGV[3], 'to', ARGV[4])
return 1
