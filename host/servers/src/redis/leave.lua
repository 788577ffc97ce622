-- ARGV: owner, hand-off reservation in milliseconds.
leave(ARGV[1])
if redis.call('EXISTS', record) == 0 then hand_on(milliseconds(), ARGV[2]) end
return 1
