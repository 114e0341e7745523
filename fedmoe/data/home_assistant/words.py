"""The English household: rooms, devices, list items and everything else a person may say.

Keys are the list names of the intents file; `<topic>.<list>` wins over `<list>` when the sentence
is about that topic (a device domain or a media class). A device name never ends in a noun its
template may add ("light", "list", "mower", "scene"), so a prompt has one reading; and no name is in
two domains, so the name tells the domain. Proper names start with a capital.
"""

from fedmoe.data.home_assistant.words_europe import DUTCH, FRENCH, GERMAN, ITALIAN, SPANISH

_ENGLISH = {
    "area": "kitchen, living room, bedroom, bathroom, hallway, office, dining room, guest room,"
    " nursery, laundry room, playroom, study, attic, basement, garage, library, sunroom,"
    " workshop, pantry, home gym, kids room, music room",
    "light.area": "kitchen, living room, bedroom, bathroom, hallway, office, dining room, guest"
    " room, nursery, laundry room, playroom, study, attic, basement, garage, library, sunroom,"
    " workshop, pantry, garden, patio, porch, balcony, driveway, terrace, shed",
    "floor": "first, second, third, ground, top, lower, upper, main, middle, bottom",
    "zone": "home, work, school, university, kindergarten, practice, church, camp",
    # Devices by domain.
    "light.name": "chandelier, night candle, spotlight, sconce, pendant, lantern, uplighter,"
    " fairy string, neon sign, disco ball, mirror strip, torchiere, lava globe, floor bulb",
    "light_kind": "ceiling, reading, bedside, corner, wall, table, accent, mood, cabinet,"
    " shelf, desk, piano, staircase, mirror",
    "switch.name": "coffee maker, kettle, toaster, aquarium pump, towel warmer, humidifier,"
    " electric blanket, dishwasher, water fountain, charger, printer, sewing machine, rice cooker",
    "fan.name": "ceiling fan, tower fan, box fan, desk fan, exhaust fan, pedestal fan, wall fan,"
    " window fan, bathroom fan, attic fan, breeze maker, air circulator",
    "input_boolean.name": "vacation mode, guest mode, quiet hours, party mode, winter mode, pet"
    " mode, away mode, baby nap, summer mode, eco mode, night watch, window reminder",
    "media_player.name": "television, soundbar, record player, radio, jukebox, projector, stereo,"
    " smart speaker, receiver, game console, boombox, sound system",
    "climate.name": "thermostat, heat pump, air conditioner, radiator, boiler, floor heating,"
    " space heater, mini split, swamp cooler, furnace, pellet stove, underfloor loop",
    "cover.name": "roller shutter, velvet curtain, bay window, sun sail, skylight, left blind,"
    " right blind, screen door, side gate, barn door, sheer curtain, pergola roof, blackout shade",
    "valve.name": "water main, sprinkler valve, gas valve, drip line, pool valve, garden tap,"
    " bypass valve, boiler inlet, rain barrel, shower valve, irrigation valve, drain valve",
    "lock.name": "front door, back door, cellar door, bike lock, medicine chest, gun safe, smart"
    " lock, deadbolt, patio lock, gate lock, wine cellar, mailbox lock",
    "vacuum.name": "robot vacuum, roomba, dust buster, vacuum bot, floor cleaner, sweeper, dust"
    " hunter, crumb catcher, mop robot, hoover, carpet shark, cleaning robot",
    "lawn_mower.name": "grass cutter, turf robot, lawn ranger, meadow bot, garden robot, mow bot,"
    " grass muncher, lawn robot, green keeper, hedgehog, clover trimmer, backyard robot",
    "scene.name": "movie night, romantic dinner, good morning, bedtime, sunset, game night, deep"
    " focus, candlelight, cozy evening, spa bath, wake up, dinner party, rainy day",
    "script.name": "leaving home, coming back, morning routine, bedtime routine, laundry check,"
    " pet feeding, plant watering, security round, weekly backup, alarm test, pool cleaning",
    "button.name": "doorbell, panic, reset, pairing, elevator, snooze, garage opener, feeder,"
    " door release, restart, chime, ice maker",
    "person.name": "Anna, Lucas, Emma, Noah, Sofia, Oliver, Maria, David, Julia, Peter, Clara, Max",
    "weather.name": "Berlin, Paris, London, Oslo, Madrid, Rome, Chicago, Denver, Boston, Sydney,"
    " Toronto, Dublin, Vienna",
    "sensor.name": "outdoor thermometer, rain gauge, air quality meter, power meter, humidity"
    " meter, gas meter, light meter, barometer, wind gauge, water meter, soil probe, noise meter",
    "binary_sensor.name": "motion sensor, smoke detector, leak sensor, gas alarm, doorbell"
    " camera, glass break sensor, door contact, presence sensor, flood alarm, vibration sensor",
    "open_sensor.name": "mailbox, fridge, freezer, pet flap, dryer, jewelry box, drawer, safe,"
    " tool cabinet, wardrobe, hatch, chicken coop",
    "todo.name": "weekend, family, household, holiday, camping, garden, summer, moving, party,"
    " personal, project, packing, spring",
    # Free text.
    "timer_name": "pizza, pasta, laundry, eggs, tea, bread, cookies, nap, workout, homework,"
    " oven, parking, rice, chicken, steak, cake, yoga, reading break, dishwasher cycle, hair dye",
    "shopping_list_item": "milk, eggs, bread, butter, cheese, apples, bananas, tomatoes,"
    " potatoes, onions, carrots, spinach, rice, pasta, flour, sugar, salt, pepper, olive oil,"
    " vinegar, honey, peanut butter, orange juice, coffee, green tea, yogurt, oat milk, chicken"
    " breast, ground beef, salmon, frozen peas, toilet paper, paper towels, dish soap, laundry"
    " detergent, shampoo, toothpaste, light bulbs, batteries, cat food, dog treats, dark"
    " chocolate, garlic, lemons",
    "todo_list_item": "sunscreen, a tent, new gloves, wood screws, sandpaper, white paint, call"
    " the plumber, book flights, renew passport, water the plants, clean the gutters, wash the"
    " car, pay the rent, mow the lawn, buy stamps, fix the sink, change the sheets, vacuum the"
    " stairs, return the books, feed the fish, order cake, wrap presents, send invitations, sort"
    " the mail, sharpen knives, oil the hinges, sweep the porch, rake leaves, charge the drill,"
    " test the alarms, print photos, iron shirts, empty the dryer, defrost the freezer, hiking"
    " boots, a flashlight, bug spray, a sleeping bag, passport photos, a phone charger, walk the"
    " dog",
    "message": "dinner is ready, the bus is here, time for bed, breakfast is on the table, we are"
    " leaving soon, grandma is calling, the movie starts now, please come downstairs, the laundry"
    " is done, lunch is served, the guests have arrived, it is snowing outside, someone is at the"
    " door, homework comes first, the cake is cool, put on your shoes, the pool is open, turn the"
    " music down, the taxi is waiting, happy birthday, wash your hands, the show is over, story"
    " time begins, let the dog out, the pizza has arrived",
    "timer_command": "turn off the kettle, turn on the sprinklers, close the blinds, open the"
    " gate, lock the front door, start the robot vacuum, stop the music, turn off the lights,"
    " turn on the ceiling fan, close the garage door, turn on the radio, turn off the oven, open"
    " the curtains, pause the movie, turn on the heating, turn off the television, water the"
    " garden, turn on the coffee maker, dim the lights, unlock the back door",
    # Media by class.
    "search_query": "jazz, classical music, rock, lullabies, the news, ocean sounds, country"
    " hits, rain sounds, piano music, summer songs, techno, christmas carols",
    "artist.search_query": "Silver Foxes, Mira Lane, The Paper Boats, Otto Grand, Luna Harper,"
    " Stone Valley, The Night Owls, Ella Winter, Blue Harbor, Sam Rivers",
    "album.search_query": "Midnight Harbor, Golden Fields, Slow Weather, Northern Roads, Glass"
    " City, Summer Letters, Empty Rooms, Second Light, River Songs, Wild Honey",
    "track.search_query": "Dancing Alone, Paper Moon, Run With Me, Falling Leaves, Open Window,"
    " Last Train Home, Shooting Star, Sweet Thunder, Cold Coffee, Hello Morning",
    "playlist.search_query": "Sunday Chill, Road Trip, Workout Mix, Dinner Jazz, Deep Sleep,"
    " Party Hits, Study Beats, Rainy Days, Throwback, Morning Boost",
    "podcast.search_query": "Science Weekly, True Stories, History Hour, Tech Talk, The Garden"
    " Show, Money Matters, Book Corner, Space Report, Food Stories, Daily Brief",
    "movie.search_query": "The Lost Island, Winter Moon, City of Rain, The Last Pilot, Desert"
    " Wind, Secret Garden, Robot Summer, The Long Way, Ghost Harbor, Silent River",
    "tv_show.search_query": "Space Doctors, The Bakers, Family Street, Cold Harbor, Night Patrol,"
    " Little Detectives, Castle Life, Ocean Watch, Planet Nine, Junior Chefs",
}

NUMBERS: dict[str, tuple[int, int, int]] = {
    "temperature": (16, 26, 1),
    "position": (5, 100, 5),
    "fan_speed": (10, 100, 5),
    "brightness": (5, 100, 5),
    "color_temperature": (2000, 6500, 100),
    "volume": (5, 100, 5),
    "volume_level": (5, 100, 5),
    "volume_step_up": (5, 30, 5),
    "volume_step_down": (5, 30, 5),
    "timer_seconds": (5, 55, 5),
    "timer_minutes": (1, 59, 1),
    "timer_hours": (1, 12, 1),
}
"""First value, last value and step of every number in the intents files, in a household's range."""

_SHARED = {
    name: words
    for name, words in _ENGLISH.items()
    if name == "person.name" or name.endswith("search_query")
}

WORDS: dict[str, dict[str, str]] = {
    "en": _ENGLISH,
    "de": _SHARED | GERMAN,
    "fr": _SHARED | FRENCH,
    "es": _SHARED | SPANISH,
    "it": _SHARED | ITALIAN,
    "nl": _SHARED | DUTCH,
}
"""Values separated by commas, by language and list."""
