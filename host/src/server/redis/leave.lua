-- ARGV: owner, for how long a lock is kept for the first.
leave(ARGV[1])
if redis.call('EXISTS', record) == 0 then hand_on(milliseconds(), ARGV[2]) end
return 1
