"""The words that the rules know: nouns, colors, numbers, verbs and places. Nothing is computed here but
the forms of these words; reading.py finds them in a caption and asking.py makes questions of them.

A noun is written `noun, synonym, ... < broader word, ... + hint, ...;`. A caption with a synonym is a caption
with the noun. "Is there a parrot?" is never answered "no" where a caption has `parrot`, a synonym, the
broader word `bird`, a narrower noun, or a hint, which is a word that lets one expect a parrot."""

import re

# Persons. Their words for sex and age are in SEX and AGE below.
PERSONS = """
man, guy, gentleman, male, fellow; woman, lady, female; boy, little boy; girl, little girl; child, kid,
toddler, youngster; baby, infant; person, someone, somebody, individual, human, adult, teenager, teen,
youth, pedestrian, figure; skier; snowboarder; skateboarder; skater; surfer; swimmer; diver; climber, rock
climber, mountain climber; hiker; runner, jogger; dancer; cyclist, bicyclist, biker, bike rider;
motorcyclist; rider; racer; driver; golfer; fisherman; cowboy; clown; bride; groom; mother, mom; father,
dad; chef, cook; waiter; waitress; player, baseball player, football player, soccer player, tennis player,
basketball player, hockey player; pitcher; batter; catcher; goalie, goalkeeper; cheerleader; gymnast;
wrestler; singer; guitarist; drummer; musician; performer; artist, painter; soldier; police officer,
policeman, cop; firefighter, fireman; worker; student; teacher; photographer; farmer; vendor; athlete;
sailor; tourist; wakeboarder; kayaker; parachutist; fencer; juggler; magician; astronaut; doctor; nurse;
jockey; weightlifter; acrobat; friend; brother; sister; referee; spectator; onlooker; bystander;
competitor; participant; passenger; customer; opponent; teammate; son; daughter; grandmother; grandfather;
wife; husband;
"""
SEX = {
    "male": "man boy cowboy groom father fisherman son grandfather husband brother waiter".split(),
    "female": "woman girl bride mother daughter grandmother wife sister waitress".split(),
}
AGE = {
    "adult": "man woman mother father bride groom cowboy fisherman grandmother grandfather".split(),
    "child": "boy girl child baby".split(),
}
# Each of these words says that there are several persons. "others" and "another" are in SEVERAL.
GROUPS = set(
    """
    crowd group team couple family audience crew band class pair trio duo several many numerous dozens
    parade gang squad choir troop
    orchestra procession staff twins folks parents everyone guests fans
    """.split()
)
SEVERAL = set("another other others third fourth fifth each both rest all".split())

ANIMALS = """
dog, puppy, pup, doggy, doggie, hound, greyhound, retriever, golden retriever, terrier, labrador, lab,
collie, border collie, poodle, dachshund, beagle, bulldog, husky, german shepherd, dalmatian, rottweiler,
pug, spaniel, chihuahua, corgi, pit bull, mutt < animal, pet, canine + wolf, fox, coyote, bone, leash,
paw, breed; cat, kitten, kitty, tabby < animal, pet, feline + mew, paw; horse, pony, stallion, mare, foal,
bronco < animal + rider, equestrian, jockey, rodeo, cowboy, polo, saddle, carriage, ride, zebra, donkey,
unicorn, mule, gallop; cow < animal, cattle, livestock + bull, ox, calf, cowboy, rodeo, matador, bison,
buffalo, steer, bullfighter; sheep, lamb, ram < animal, livestock + goat, wool, herd, flock, shepherd;
goat < animal, livestock + sheep, herd, ram; pig, piglet, hog < animal, livestock + boar; elephant <
animal; bear, polar bear, grizzly < animal + panda; zebra < animal + horse; giraffe < animal; lion <
animal; tiger < animal; leopard < animal + cheetah; bull < animal + cow, ox; monkey, ape, chimpanzee <
animal + gorilla; panda < animal, bear; koala < animal; kangaroo < animal; camel < animal + llama; donkey,
mule < animal + horse; fox < animal + dog; wolf < animal + dog; deer, fawn, reindeer < animal + elk,
moose, antelope; squirrel < animal; rabbit, bunny, hare < animal; mouse < animal + rat; hedgehog < animal;
otter < animal + seal; snake < animal, reptile; lizard < animal, reptile + gecko, dragon; crocodile,
alligator < animal, reptile; turtle, tortoise < animal, reptile; frog, toad < animal; snail < animal;
fish, tropical fish < animal + fishing, salmon; shark < animal, fish; whale < animal; dolphin < animal +
whale; octopus < animal; crab < animal + lobster; seal, sea lion < animal + walrus, otter; bird < animal +
feather, beak, wing, fowl, flock, crow, heron, ostrich, hawk, robin, sparrow; parrot, macaw < animal,
bird; eagle, bird of prey < animal, bird + hawk, falcon; owl < animal, bird; duck, mallard < animal, bird
+ goose, swan; swan < animal, bird + duck, goose; goose < animal, bird + duck, swan; chicken, hen, rooster
< animal, bird; turkey < animal, bird; penguin < animal, bird; flamingo < animal, bird; peacock < animal,
bird; pigeon < animal, bird + dove; dove < animal, bird + pigeon; seagull, gull < animal, bird; butterfly
< animal, insect + moth; bee, honeybee, bumblebee < animal, insect + wasp; spider < animal, insect;
ladybug, ladybird, beetle < animal, insect; dinosaur < animal; dragon < animal; unicorn < animal, horse;
"""
VEHICLES = """
car, automobile, suv, race car, taxi, cab, convertible < vehicle + traffic, jeep, truck, van, race,
racing, street, road, parking, garage, driver, drive, driving, wheel, kart, buggy, hood, windshield;
truck, pickup truck, pickup, lorry, fire truck, fire engine < vehicle + traffic, jeep, van, tractor, hood;
van, minivan < vehicle + truck, car; bus, school bus, double decker bus < vehicle + traffic; train,
locomotive, steam train < vehicle + railway, railroad, subway, tram, metro, station, track; tram,
streetcar, trolley < vehicle + train, track; bicycle, bike, mountain bike, road bike, bmx bike < vehicle +
cyclist, bicyclist, biker, cycling, biking, bmx, rider, wheel, pedal, motorcycle, unicycle, tricycle,
motorbike, cycle; motorcycle, motorbike, dirt bike, motor bike, dirtbike < vehicle + biker, bike, rider,
racer, motocross, motorcyclist, scooter, moped, atv, cycle, helmet; scooter, moped, kick scooter < vehicle
+ motorcycle, bike; boat, rowboat, fishing boat < vehicle + ship, sail, sailing, yacht, vessel, rowing,
raft, rafting, ferry, oar, paddle, dock, harbor, wake, wakeboard, wakeboarder, waterski; canoe < vehicle,
boat + kayak, paddle; kayak < vehicle, boat + canoe, paddle, kayaker, kayaking; sailboat, sailing boat,
yacht < vehicle, boat + sail, sailing; motorboat, speedboat < vehicle, boat; ship, cruise ship, ferry <
vehicle, boat; airplane, plane, aeroplane, jet, aircraft < vehicle + airport, pilot, flight, helicopter;
helicopter < vehicle, aircraft; hot air balloon < balloon; rocket < vehicle; tractor < vehicle; flying
saucer, ufo, spaceship; sled, sleigh, toboggan + sledding, snow, tube; wheelchair; stroller, baby carriage
+ buggy; go kart, go-kart, go cart, go-cart; cart + wheel, wagon; wagon + wheel, cart, carriage;
"""
FOOD = """
pizza + slice; cake, birthday cake, cupcake + dessert, birthday, pastry; sandwich < food + burger, sub;
burger, hamburger, cheeseburger < food + sandwich; hot dog, hotdog + sausage; banana < fruit, food; apple
< fruit, food; strawberry < fruit, food + berry; pineapple < fruit, food; watermelon < fruit, food +
melon; lemon < fruit, food; pear < fruit, food; peach < fruit, food; grape < fruit, food; cherry < fruit,
food; carrot < vegetable, food; tomato < vegetable, food; broccoli < vegetable, food; mushroom < food;
donut, doughnut < food + pastry; cookie < food + biscuit; ice cream, ice cream cone < food + cone,
dessert, popsicle; pretzel < food; taco < food; popcorn < food; croissant < food + pastry, bread; egg <
food; cheese < food;
"""
THINGS = """
ball, soccer ball, tennis ball, basketball, football, volleyball, baseball, beach ball, rugby ball, golf
ball, bowling ball < toy + soccer, tennis, basketball, football, volleyball, baseball, rugby, golf,
softball, cricket, hockey, croquet, lacrosse, pitcher, batter, bat, pitch, goal, racket, catch, juggling,
juggler, bowling, ping-pong, player, hoop, dribble, polo, game, pool, sport, ballplayer, dunk, goalie,
catcher; frisbee, flying disc < toy, disc + disk; kite < toy + string; balloon + hot air balloon;
skateboard < board + skate, skateboarder, skateboarding, skater, skating, ramp, longboard, rail, trick,
halfpipe; surfboard, surf board < board + surf, surfer, surfing, wave, wakeboard, boogie, bodyboard;
wakeboard < board + wakeboarder, waterski; snowboard < board + snowboarder, snowboarding, ski, skier,
slope, trick; tennis racket, tennis racquet, racket, racquet + tennis, badminton; baseball bat < bat +
baseball, batter, softball; baseball glove, mitt < glove + baseball, catcher, pitcher; golf club < club +
golf, golfer; guitar, electric guitar, acoustic guitar < instrument + guitarist, band, music, musician,
banjo, bass; piano, keyboard < instrument + band, music; drum < instrument + drummer, band, music; violin,
fiddle < instrument; trumpet < instrument + horn, band; flute < instrument; saxophone < instrument;
umbrella, parasol; tent, circus tent + camping, camp, canopy; trampoline; hammock; ladder; swing, tire
swing + swinging; slide, water slide + sliding, playground; fountain + sprinkler; snowman; scarecrow;
castle < building + sandcastle; lighthouse; windmill; teddy bear, stuffed bear < toy, bear; robot; crown;
trophy + cup, award, medal; yo-yo < toy; doll < toy; camera, video camera + photographer, picture, photo,
photograph, photographing, video, film, filming, tripod, lens; laptop, laptop computer < computer;
television, tv + screen, monitor; microphone, mic + singer, singing, karaoke, stage; telescope;
typewriter; teapot + tea; vase; candle; clock + watch; broom + sweep, sweeping; saw; hammer; wheelbarrow;
gift, present, wrapped gift + package, wrapping; sunflower < flower; rose < flower; cactus < plant;
christmas tree < tree; couch, sofa + loveseat, cushion; bathtub, tub + bath; fire hydrant, hydrant;
parachute + parachutist, skydiver, parasail; traffic light, stoplight + signal; suitcase < luggage, bag;
backpack < bag + pack, hiker, hiking; pumpkin + halloween;
"""
# Captions often leave these out, so "Is there a ...?" is never asked of them.
OTHERS = """
stick, branch, twig; toy; bag, purse, handbag; book; bottle; cup, mug; plate; bowl; fork; knife; spoon;
phone, cell phone; cigarette; flower; sign; flag; rope; pole; net; fence; wall, brick wall, stone wall;
door; window; curtain; bench; chair; table, wooden table, picnic table, table top; bed; blanket; towel;
house, cottage; building; bridge, suspension bridge; tower; tree, palm tree, leafy tree; bush; rock,
boulder; log; sky; bucket; basket; box; shovel; hose; leash; wave; ramp; sword; gun; rifle; newspaper;
magazine; pillow; carpet, rug; couch cushion; fish bowl; animal; bat; glove; pan, frying pan; pot, cooking
pot; kitchen counter, counter; roof; mat; leaf;
"""
CLOTHES = """
shirt, t-shirt, tshirt, tee shirt, tank top, blouse, polo shirt; jacket, coat, parka; sweater, hoodie,
sweatshirt; dress; skirt; hat, cap, baseball cap, beanie, cowboy hat, sun hat; helmet; suit; vest, life
jacket, life vest; uniform; scarf; swimsuit, bathing suit, bikini; apron; robe; tie; collar; wetsuit, wet
suit; costume; bandanna, bandana; outfit; jersey;
"""
PAIRS = """
pants, trousers, slacks; shorts; jeans; swim trunks, swimming trunks, trunks; sunglasses; glasses;
goggles; gloves; boots; shoes, sneakers; overalls; tights, leggings; socks; pajamas;
"""

# `answer: prepositions: nouns`. One of the prepositions before one of the nouns gives the answer.
# "into", "near" and "over" are no places: who jumps into the water is not in it.
SCENES = """
in the snow: in through: snow
on the snow: on across: snow
on the beach: on at along across down: beach, sandy beach, seashore, shore, seaside, shoreline
on the sand: on in through across along: sand
in the water: in through: water
on the water: on across: water
in the ocean: in: ocean, sea
in the river: in: river
in a stream: in: stream, creek
on the river: on down: river
in the lake: in: lake, pond
on the lake: on across: lake
in the pool: in: pool, swimming pool
on the grass: on in through across: grass, lawn
in a field: in through across on: field, meadow, green field, grassy field
in the park: in at through: park, city park
in the woods: in through: wood, forest, woodland, jungle
on the street: on down in along across: street, city street
on the road: on down along: road, dirt road, highway
on the sidewalk: on down along: sidewalk, pavement
on a path: on down along: path, trail
on a mountain: on up down: mountain, mountainside, snowy mountain
in the mountains: in: mountain
on a hill: on up down: hill, hillside
on a slope: on down: slope, ski slope, mountain slope
in the desert: in through across: desert
in the city: in: city, town
in the yard: in through across: yard, backyard
in a garden: in through: garden
in a kitchen: in: kitchen
in a living room: in: living room
in a bedroom: in: bedroom
in a bathroom: in: bathroom, restroom
in a room: in: room
in an office: in: office
in a store: in at: store, shop, supermarket
in a restaurant: in at: restaurant, cafe, diner
in a gym: in: gym, gymnasium
in a classroom: in: classroom
in a hallway: in down: hallway
on a stage: on: stage, theater stage
on a tennis court: on: tennis court
on a basketball court: on: basketball court
on a baseball field: on: baseball field, baseball diamond
on a soccer field: on: soccer field
on a football field: on: football field
on a track: on around: track, race track, racetrack, dirt track
in a stadium: in: stadium
in a parking lot: in: parking lot
on a playground: on at in: playground
at a skate park: at in: skate park, skatepark
on a dock: on: dock, pier
on a farm: on: farm
at the zoo: at in: zoo
in an airport: in at: airport
in a train station: in at: train station, subway station
on the ice: on across: ice
in the mud: in through: mud
in the dirt: in on through: dirt
"""
# These answer "Where is the ...?" but not "Where is this?".
SPOTS = """
in the air: in through: air, midair
in the sky: in through: sky
on a bench: on: bench, park bench
on a couch: on: couch
on a bed: on in: bed
on a chair: on in: chair
on a table: on: table
at a table: at: table
on the kitchen counter: on: kitchen counter
on a bridge: on across: bridge
on a rock: on: rock
on a wall: on: wall
on a roof: on: roof
on the floor: on: floor
on the ground: on: ground
on the stairs: on down up: stair, step
in a tree: in: tree
in a boat: in: boat
in a car: in: car
in a chair: in: chair
on a swing: on in: swing
on a trampoline: on: trampoline
"""
INDOORS = set("kitchen bedroom bathroom office store restaurant gym classroom hallway room airport".split())
OUTDOORS = set(
    """
    snow beach sand ocean river stream lake grass field park woods street road sidewalk path mountain
    mountains hill slope desert city yard garden farm zoo mud dirt playground dock
    """.split()
)

COLORS = {
    word: word
    for word in """
    red orange yellow green blue purple pink brown black white gray tan silver gold golden blond turquoise
    cream multicolored
    """.split()
}
COLORS |= {"grey": "gray", "violet": "purple", "lavender": "purple", "maroon": "red", "crimson": "red"}
COLORS |= {"beige": "tan", "khaki": "tan", "blonde": "blond", "navy": "blue", "aqua": "turquoise"}
COLORS |= {"teal": "turquoise", "colorful": "multicolored", "multi-colored": "multicolored"}
NUMBERS = {word: n for n, word in enumerate("two three four five six seven eight nine ten".split(), 2)}
NUMBERS |= {str(n): n for n in range(2, 11)} | {"one": 1, "1": 1}
NUMBER_WORDS = {n: word for word, n in NUMBERS.items() if word.isalpha()}
ARTICLES = set("a an the this that his her its their some one".split())
ADJECTIVES = set(
    """
    small big large little tiny huge young old older elderly tall short long fat thin light dark bright
    very wet dry furry fluffy shaggy hairy spotted striped plaid checkered patterned flowered floral
    shiny dirty muddy leather denim brick wooden metal steel stone wool knit cotton winter hooded
    sleeved sleeveless short-sleeved long-sleeved puffy baggy tight plain matching happy cute beautiful
    pretty smiling lone single wide open empty tiled snowy sandy grassy rocky dusty muddy deep shallow
    calm busy crowded city clear haired asian african american fancy ripe fresh tropical sports giant
    medium-sized medium sized toddler baby racing adult male female teenage teenaged middle-aged
    shirtless bald bearded barefoot two-toned
    """.split()
)
FAKES = set(
    """
    toy stuffed fake plastic rubber model inflatable ceramic cardboard carved bronze no without painted
    mechanical balloon plush
    """.split()
)
# A caption with one of these may describe a thing that is not there.
DEPICTED = re.compile(
    r"\b(statues?|sculptures?|paintings?|drawings?|posters?|murals?|cartoons?|costumes?|mascots?|billboards?"
    r"|tattoos?|logos?|mannequins?|dummy|shaped|dressed (up )?(as|like)|looks? like|advertisements?|shadows?"
    r"|reflections?|pretend\w*|appears? to|seems? to|as if|no longer|imaginary|portrait|carousel"
    r"|merry-go-round)\b"
)

# Verbs that answer "What is the dog doing?" alone.
ALONE = """
    run walk jump leap swim sit stand lie sleep kneel crouch squat climb crawl dive wade float jog dance
    sing smile laugh cry yell scream shout talk wave point clap cheer perform pose relax rest eat drink
    read write cook fish hike camp ski snowboard skateboard surf sled skate kayak canoe sail row paddle
    exercise stretch pray bathe work graze juggle fence knit sweep spin slide swing bounce wait bark dig
    yawn splash wrestle fight play fly hang lean bowl nap
""".split()
# Verbs that need their object: "What is the man riding?", "What is the man doing?" "riding a bicycle".
WITH_OBJECT = """
    ride hold carry catch throw chase kick push pull hit read eat wear drive play fly swing climb
""".split()
SEVERAL_OBJECTS = {"wear"}
# What is held is easily misread: two captions have to name the thing.
HANDS = set("hold carry catch pull push".split())
# An object may follow these without changing what "eating" or "climbing" says.
OBJECT_OR_NOT = set("eat drink read climb cook juggle sweep write sing jump row paddle".split())
# Who does one of these does no other at that moment, but for the pairs.
POSTURES = set(
    """
    run walk jump swim sit stand lie sleep kneel crouch squat climb crawl dive wade float jog fly hang
    ski surf bathe slide skate sled snowboard skateboard wrestle ride drive dance swing bend lean fall
    eat drink
    """.split()
)
TOGETHER = [
    {"lie", "sleep"},
    {"hang", "swing"},
    {"sit", "swing"},
    {"sit", "lean"},
    {"stand", "lean"},
    {"bend", "stand", "lean"},
    {"sit", "eat", "drink"},
    {"stand", "eat", "drink"},
    {"lie", "eat"},
    {"sit", "ride"},
    {"sit", "drive"},
    {"ski", "jump"},
    {"snowboard", "jump"},
    {"skateboard", "jump"},
    {"surf", "ride"},
    {"ride", "jump"},
]
# Captions of one image with both of a pair contradict each other.
OPPOSITES = [{"catch", "drop"}, {"catch", "throw"}, {"push", "pull"}, {"sleep", "play"}, {"laugh", "cry"}]
# One of these is easily taken for another. Where one caption has the first and another the second, neither is
# sure.
RIVALS = [
    {"bicycle", "motorcycle", "scooter"},
    {"snowboard", "surfboard", "skateboard", "sled", "wakeboard"},
    {"ball", "frisbee", "stick", "sword"},
    {"boat", "canoe", "kayak", "ship"},
    {"car", "truck", "van", "bus"},
    {"train", "tram"},
    {"dog", "wolf", "fox"},
    {"horse", "donkey", "zebra"},
    {"cow", "bull"},
    {"duck", "goose", "swan", "turkey", "chicken"},
]
SAME_VERB = {"leap": "jump", "jog": "run", "nap": "sleep", "lay": "lie", "race": "run", "bike": "cycle"}
# Forms of other verbs, which may follow a noun: "a dog looks", "a man wearing".
OTHER_VERBS = """
    look wear have hold try get go start begin use make take do come stay appear watch stare turn lead
    follow leave enter reach approach cross drop grab bite lick sniff smell shake roll touch hug kiss
    feed show give help serve shoot fall land perch drift bloom peer gaze glide balance race trot
    gallop bound fetch return move duck ram travel pass rush dash tackle pitch prepare attempt lift cut
    wash paint build clean open blow toss attack strike dribble pick set put lay plow bike practice
    celebrate grin frown share gather compete head face rest be
""".split()
DOUBLED = set(
    """
    run swim sit jog dig nap hit get set put sled cut skip hop drop grab hug shop sun wag spin
    """.split()
)
GAMES = """
    soccer football baseball basketball tennis volleyball golf hockey rugby cricket badminton chess
    cards softball lacrosse frisbee
""".split()
INSTRUMENTS = set("guitar piano drum violin trumpet flute saxophone".split())
# "running shoes", "fishing boat": the -ing word before one of these is no action.
ING_BEFORE = set(
    """
    shoe shoes gear pool pole board boat suit trunks stick path track wall trick tricks trail boots
    lesson lessons rock area machine team room position ring rink party match race show contest
    competition event
    """.split()
)
# Words in -ing that are no verbs, so that "dog clothing" is not a dog.
ING_NOUNS = set(
    """
    building clothing wedding railing painting ceiling string king ring evening morning spring wing
    thing something swing being parking racing training sledding boxing bedding crossing landing opening
    serving drawing
    """.split()
)
# Words that may follow a noun without making it a part of a longer one.
AFTER = set(
    """
    in on at of with and or by near to from into onto over under above below behind beside between
    through across along around down up off for while as who which that whose where is are was were has
    have can has his her its their a an the outside inside together outdoors indoors next against during
    toward towards underneath beneath amongst among past after before but away being about without atop
    inside not there here also both each then only just far alongside when high low quickly happily . ,
    ; : ! ? & ( )
    """.split()
)
FILLERS = set(
    """
    is are who that which quickly happily slowly high outside outdoors alone together just currently
    up down away around about playfully peacefully fast quietly busily there still now be seen can
    """.split()
)
